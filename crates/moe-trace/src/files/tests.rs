//! Whole files at plain, linked and special paths.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::Command;

use super::destination::Destination;
use super::{FolderLock, WholeFile, write_whole};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_file_appears_whole_or_stays_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    write_whole(&path, b"old").unwrap();
    let mut file = WholeFile::create(&path).unwrap();
    file.write_all(b"half").unwrap();
    assert_eq!((fs::read(&path).unwrap(), names(folder.path()).len()), (b"old".to_vec(), 2));
    drop(file);
    assert_eq!((fs::read(&path).unwrap(), names(folder.path())), (b"old".to_vec(), vec!["a.json".to_owned()]));
    write_whole(&path, b"new").unwrap();
    assert_eq!((fs::read(&path).unwrap(), names(folder.path())), (b"new".to_vec(), vec!["a.json".to_owned()]));
}

#[test]
fn temporary_files_of_dead_processes_are_removed_by_the_next_writer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    for lost in ["a.json.4194305-1.tmp", "a.json.7.tmp", "b.json.7-1.tmp", "a.json.mine.tmp"] {
        fs::write(folder.path().join(lost), "half").unwrap();
    }
    // Two files of living writers: one of this process, one that is merely locked as another process locks it.
    let held = File::create(folder.path().join("a.json.8-1.tmp")).unwrap();
    held.lock().unwrap();
    let mut first = WholeFile::create(&path).unwrap();
    first.write_all(b"first").unwrap();
    write_whole(&path, b"second").unwrap();
    first.commit().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"first");
    assert_eq!(names(folder.path()), ["a.json", "a.json.8-1.tmp", "a.json.mine.tmp", "b.json.7-1.tmp"]);
}

#[test]
fn folders_and_missing_folders_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &Path| WholeFile::create(path).unwrap_err();
    assert_eq!(refused(folder.path()).to_string(), "is a folder, give the name of a file");
    assert_eq!(refused(&folder.path().join("new/")).kind(), ErrorKind::InvalidInput);
    assert_eq!(refused(&folder.path().join("missing/a.json")).kind(), ErrorKind::NotFound);
    assert!(names(folder.path()).is_empty());
    assert_eq!(Destination::of(Path::new("/dev/stdout")).unwrap(), Destination::StandardOutput);
}

#[cfg(unix)]
#[test]
fn links_keep_pointing() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("real")).unwrap();
    fs::write(at("real/a"), "old").unwrap();
    fs::set_permissions(at("real/a"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("real/a", at("link")).unwrap();
    symlink("link", at("links")).unwrap();
    symlink("real/new", at("dangling")).unwrap();
    symlink("loop", at("loop")).unwrap();
    write_whole(at("links"), b"new").unwrap();
    write_whole(at("dangling"), b"made").unwrap();
    assert_eq!(
        (fs::read(at("real/a")).unwrap(), fs::read(at("real/new")).unwrap()),
        (b"new".to_vec(), b"made".to_vec())
    );
    assert!(["link", "links", "dangling"].iter().all(|link| fs::symlink_metadata(at(link)).unwrap().is_symlink()));
    assert_eq!(fs::metadata(at("real/a")).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(write_whole(at("loop"), b"").is_err());
    assert_eq!(names(&at("real")), ["a", "new"]);
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_written_to_and_never_replaced() {
    use std::os::unix::fs::FileTypeExt;
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || fs::read(fifo).unwrap()
    });
    write_whole(&fifo, b"through").unwrap();
    assert_eq!(reader.join().unwrap(), b"through");
    assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());

    // Only root may make devices.
    let device = |name: &str, kind: &[&str]| {
        let path = folder.path().join(name);
        Command::new("mknod").arg(&path).args(kind).output().unwrap().status.success().then_some(path)
    };
    if let Some(null) = device("null", &["c", "1", "3"]) {
        let written = write_whole(&null, b"away");
        // A file system may be mounted without devices.
        assert!(written.is_ok() || written.unwrap_err().kind() == ErrorKind::PermissionDenied);
        assert!(fs::symlink_metadata(&null).unwrap().file_type().is_char_device());
    }
    if let Some(disk) = device("disk", &["b", "7", "250"]) {
        let refused = WholeFile::create(&disk).unwrap_err();
        assert_eq!(refused.to_string(), "is neither a file nor a pipe nor a character device");
    }
    assert!(names(folder.path()).iter().all(|name| !name.ends_with(".tmp")));
}

#[test]
fn a_folder_has_one_writer() {
    let folder = tempfile::tempdir().unwrap();
    let held = FolderLock::take(folder.path()).unwrap();
    let busy = FolderLock::take(folder.path()).unwrap_err();
    assert_eq!(
        (busy.kind(), busy.to_string().as_str()),
        (ErrorKind::ResourceBusy, "is being written by another process")
    );
    drop(held);
    // A lock file that a killed process left has no holder.
    fs::write(folder.path().join(".lock"), "").unwrap();
    drop(FolderLock::take(folder.path()).unwrap());
    assert_eq!(names(folder.path()).len(), usize::from(!cfg!(unix)));
}

#[cfg(unix)]
#[test]
fn a_lock_that_is_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path().join(".lock")).unwrap();
    let error = FolderLock::take(folder.path()).unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::InvalidInput, ".lock is no file, remove it"));
    assert!(!folder.path().join("nowhere").exists());
}
