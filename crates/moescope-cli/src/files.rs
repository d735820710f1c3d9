//! The files of a program, checked before it works.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use moe_trace::{Destination, WholeFile};

use crate::print::take_standard_output;

/// The files that a program reads and writes. [`check`](Self::check) finds outputs that would destroy an input or one
/// another, and those that cannot be written, before any work is done.
///
/// Files are told apart by what they are, not by their names: `./a`, symbolic links and hard links of `a` are `a`.
#[derive(Debug, Default)]
pub struct Files {
    inputs: Vec<Input>,
    outputs: Vec<(String, PathBuf)>,
    /// Outputs that a pipe or a device cannot take, and why.
    regular: Vec<(PathBuf, &'static str)>,
    /// Folders that outputs are written to; they are created where they do not exist.
    folders: Vec<(String, PathBuf)>,
}

#[derive(Debug)]
struct Input {
    what: String,
    path: PathBuf,
    /// New files below it would be read, too.
    whole: bool,
}

/// How an output harms an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    /// The output is the input, or a file of it.
    Replaces,
    /// The output would be a new file of the input.
    Joins,
}

/// What tells a file from others.
#[derive(Debug, PartialEq, Eq)]
enum Identity {
    /// A file that exists: its device and its number there.
    #[cfg(unix)]
    Inode(u64, u64),
    /// A file that does not exist yet, behind all links that do.
    Path(PathBuf),
    StandardOutput,
}

impl Files {
    /// Creates an empty list.
    pub fn new() -> Files {
        Files::default()
    }

    /// Adds an input: a file, or a folder with all files that it has. `what` names it in messages ("the trace").
    #[must_use]
    pub fn reads(mut self, what: &str, path: impl AsRef<Path>) -> Files {
        let path = path.as_ref();
        self.inputs.push(Input { what: what.to_owned(), path: path.to_owned(), whole: false });
        if path.extension().is_some_and(|extension| extension == "npz") {
            let what = format!("the description of {what}");
            self.inputs.push(Input { what, path: path.with_extension("meta.json"), whole: false });
        }
        self
    }

    /// Adds a trace: a file, or of a folder of shards the shards and the index.
    #[must_use]
    pub fn reads_trace(self, path: impl AsRef<Path>) -> Files {
        self.reads_of("the trace", path.as_ref(), |name| name.starts_with("shard-") || name == "index.json")
    }

    /// Adds the folder of a model: its weights, configuration and tokenizer.
    #[must_use]
    pub fn reads_model(self, folder: impl AsRef<Path>) -> Files {
        const FILES: [&str; 4] = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"];
        let is_weights = |name: &str| [".safetensors", ".index.json", ".gguf"].iter().any(|end| name.ends_with(end));
        self.reads_of("a file of the model", folder.as_ref(), |name| FILES.contains(&name) || is_weights(name))
    }

    /// Adds a file, or those files of a folder that have certain names; of a folder without them all files.
    fn reads_of(self, what: &str, path: &Path, is_one: impl Fn(&str) -> bool) -> Files {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(&is_one));
        let files: Vec<PathBuf> = named.map(|entry| entry.path()).collect();
        if files.is_empty() { self.reads(what, path) } else { self.reads_all(what, files) }
    }

    /// Adds inputs of one kind.
    #[must_use]
    pub fn reads_all(self, what: &str, paths: impl IntoIterator<Item: AsRef<Path>>) -> Files {
        paths.into_iter().fold(self, |files, path| files.reads(what, path))
    }

    /// Adds a folder of which everything is read, so that no new file may be written into it either.
    #[must_use]
    pub fn reads_tree(mut self, what: &str, path: impl AsRef<Path>) -> Files {
        self.inputs.push(Input { what: what.to_owned(), path: path.as_ref().to_owned(), whole: true });
        self
    }

    /// Adds an output, if it was asked for. `option` names it in messages ("--json").
    #[must_use]
    pub fn writes<'a>(mut self, option: &str, path: impl Into<Option<&'a PathBuf>>) -> Files {
        self.outputs.extend(path.into().map(|path| (option.to_owned(), path.clone())));
        self
    }

    /// Adds an output that a pipe or a device cannot take, if it was asked for; `why` says so in the message.
    #[must_use]
    pub fn writes_regular<'a>(
        mut self,
        option: &str,
        path: impl Into<Option<&'a PathBuf>>,
        why: &'static str,
    ) -> Files {
        let path = path.into();
        self.regular.extend(path.map(|path| (path.clone(), why)));
        self.writes(option, path)
    }

    /// Adds outputs in a folder, which need not exist.
    #[must_use]
    pub fn writes_in(mut self, option: &str, folder: &Path, names: &[&str]) -> Files {
        self.folders.push((option.to_owned(), folder.to_owned()));
        self.outputs.extend(names.iter().map(|name| (format!("{option}: {name}"), folder.join(name))));
        self
    }

    /// Checks all outputs. From then on nothing else is printed to standard output if one of them is written there.
    ///
    /// # Errors
    /// An output that is an input or another output, or that cannot be written.
    pub fn check(&self) -> Result<()> {
        let mut known: Vec<(&str, Identity)> = Vec::new();
        for (option, path) in &self.outputs {
            // Pipes and devices are not destroyed by being written to.
            let Some(identity) = identity(path).with_context(|| cannot_write(option, path))? else { continue };
            for input in &self.inputs {
                let what = &input.what;
                match input.harm(path, &identity) {
                    Some(Harm::Replaces) => bail!("{option} is {what} that is read: {}", path.display()),
                    Some(Harm::Joins) => bail!(
                        "{option} would become a part of {what} that is read: {}; write it outside of {}",
                        path.display(),
                        input.path.display()
                    ),
                    None => {}
                }
            }
            ensure!(!is_of_shards(path), "{option} is a part of a folder of shards: {}", path.display());
            if let Some((other, _)) = known.iter().find(|(_, known)| *known == identity) {
                bail!("{other} and {option} are one file: {}", path.display());
            }
            known.push((option, identity));
        }
        for (option, folder) in &self.folders {
            try_folder(folder).with_context(|| cannot_write(option, folder))?;
        }
        for (option, path) in &self.outputs {
            self.try_file(path).with_context(|| cannot_write(option, path))?;
        }
        if known.iter().any(|(_, identity)| *identity == Identity::StandardOutput) {
            take_standard_output();
        }
        Ok(())
    }

    /// Finds out whether a file can be written, and leaves nothing behind.
    fn try_file(&self, path: &Path) -> Result<()> {
        let Destination::Regular(target) = Destination::of(path)? else {
            let refused = self.regular.iter().find(|(regular, _)| regular == path);
            if let Some((_, why)) = refused {
                bail!("is not a regular file: {why}");
            }
            if is_named_pipe(path) {
                crate::errln!("note: {} is a pipe: writing waits until it has a reader", path.display());
            }
            return Ok(());
        };
        let folder = target.parent().unwrap_or(Path::new("."));
        let is_made = |(_, made): &(String, PathBuf)| !made.exists() && path.starts_with(made);
        if !folder.exists() && self.folders.iter().any(is_made) {
            return Ok(());
        }
        ensure!(folder.exists(), "there is no folder {}", folder.display());
        WholeFile::create(&target)?;
        Ok(())
    }
}

impl Input {
    /// Returns how an output harms this input, if it does.
    fn harm(&self, path: &Path, output: &Identity) -> Option<Harm> {
        let found = fs::metadata(&self.path).ok()?;
        let is_input = match found.is_dir() {
            true => path.exists() && tree_has(&self.path, output, 0),
            false => identity(&self.path).is_ok_and(|input| input.as_ref() == Some(output)),
        };
        let is_below = || Some(behind_links(path).ok()?.starts_with(fs::canonicalize(&self.path).ok()?));
        let joins = || found.is_dir() && self.whole && is_below() == Some(true);
        if is_input { Some(Harm::Replaces) } else { joins().then_some(Harm::Joins) }
    }
}

/// Whether a file would be a shard, the index or the lock of shards that exist.
fn is_of_shards(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    let is_part = name.starts_with("shard-") || name == "index.json" || name == ".lock";
    is_part && path.with_file_name("index.json").exists() && path.with_file_name("shard-00000.safetensors").exists()
}

/// Whether a folder has a file.
fn tree_has(folder: &Path, file: &Identity, depth: usize) -> bool {
    /// Folders in folders, at most: links may lead in circles.
    const DEEPEST: usize = 8;
    fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| {
        let path = entry.path();
        match path.is_dir() {
            true => depth < DEEPEST && tree_has(&path, file, depth + 1),
            false => identity(&path).is_ok_and(|found| found.as_ref() == Some(file)),
        }
    })
}

/// The identity of a file that is replaced when it is written to; `None` of a pipe or a device.
fn identity(path: &Path) -> Result<Option<Identity>> {
    match Destination::of(path) {
        Ok(Destination::Regular(target)) => {
            #[cfg(unix)]
            if let Ok(found) = fs::metadata(&target) {
                use std::os::unix::fs::MetadataExt;
                return Ok(Some(Identity::Inode(found.dev(), found.ino())));
            }
            Ok(Some(Identity::Path(behind_links(&target)?)))
        }
        Ok(Destination::StandardOutput) => Ok(Some(Identity::StandardOutput)),
        Ok(Destination::Stream(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The path of a file that need not exist: links of the folders that exist are followed.
fn behind_links(path: &Path) -> Result<PathBuf> {
    match fs::canonicalize(path) {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == ErrorKind::NotFound => match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => Ok(behind_links(parent)?.join(name)),
            (Some(_), Some(name)) => Ok(behind_links(Path::new("."))?.join(name)),
            _ => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// Returns true for a pipe that may have no reader yet. Opening the pipe to find out would end a reader that is there.
#[cfg(unix)]
fn is_named_pipe(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    // A shell has connected the pipes there.
    let is_connected = ["/dev/fd", "/dev/stdout", "/dev/stderr", "/proc"].iter().any(|there| path.starts_with(there));
    !is_connected && fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo())
}

#[cfg(not(unix))]
fn is_named_pipe(_: &Path) -> bool {
    false
}

/// Finds out whether a folder can be written to, or made, and leaves nothing behind.
fn try_folder(folder: &Path) -> Result<()> {
    let there = std::path::absolute(folder)?;
    let Some(there) = there.ancestors().find(|folder| folder.symlink_metadata().is_ok()) else { return Ok(()) };
    ensure!(there.is_dir(), "{} is no folder", there.display());
    WholeFile::create(there.join("written"))?;
    Ok(())
}

fn cannot_write(option: &str, path: &Path) -> String {
    format!("{option}: cannot write {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        /// A trace, a model of one file, and nothing else.
        fn new() -> Folder {
            let folder = Folder(tempfile::tempdir().unwrap());
            fs::write(folder.at("trace"), "routing").unwrap();
            fs::create_dir(folder.at("model")).unwrap();
            fs::write(folder.at("model/weights"), "weights").unwrap();
            folder
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn files(&self) -> Files {
            Files::new().reads("the trace", self.at("trace")).reads("a file of the model", self.at("model"))
        }

        /// The message of a check, the folder left out.
        fn refused(&self, files: &Files) -> String {
            format!("{:#}", files.check().unwrap_err()).replace(&format!("{}/", self.0.path().display()), "")
        }

        fn names(&self) -> usize {
            fs::read_dir(self.0.path()).unwrap().count()
        }
    }

    #[test]
    fn an_output_is_no_input_whatever_it_is_called() {
        let folder = Folder::new();
        fs::hard_link(folder.at("trace"), folder.at("hard")).unwrap();
        let mut names = vec!["trace", "model/../trace", "./trace", "hard"];
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("trace", folder.at("soft")).unwrap();
            std::os::unix::fs::symlink(".", folder.at("here")).unwrap();
            names.extend(["soft", "here/soft", "here/trace"]);
        }
        for name in names {
            let files = folder.files().writes("--json", &folder.at(name));
            assert_eq!(folder.refused(&files), format!("--json is the trace that is read: {name}"));
        }
        let files = folder.files().writes("--out", &folder.at("model/weights"));
        assert_eq!(folder.refused(&files), "--out is a file of the model that is read: model/weights");
        folder.files().writes("--json", &folder.at("model/figures.json")).check().unwrap();
        let tree = || Files::new().reads_tree("the text", folder.at("model"));
        let part = "--json would become a part of the text that is read: model/a/b; write it outside of model";
        assert_eq!(folder.refused(&tree().writes("--json", &folder.at("model/a/b"))), part);
        let file = "--json is the text that is read: model/weights";
        assert_eq!(folder.refused(&tree().writes("--json", &folder.at("model/weights"))), file);
        assert_eq!(fs::read(folder.at("trace")).unwrap(), b"routing");
    }

    /// A pipe without a reader is refused at once where it could not be written to anyway.
    #[cfg(unix)]
    #[test]
    fn a_pipe_is_no_regular_file() {
        let folder = Folder::new();
        let pipe = folder.at("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        folder.files().writes("OUTPUT", &pipe).check().unwrap();
        let files = folder.files().writes_regular("OUTPUT", &pipe, "npz has a description beside it");
        let expected = "OUTPUT: cannot write pipe: is not a regular file: npz has a description beside it";
        assert_eq!(folder.refused(&files), expected);
        let standard = PathBuf::from("/dev/stdout");
        let files = Files::new().writes_regular("OUTPUT", &standard, "npz has a description beside it");
        assert!(folder.refused(&files).ends_with("is not a regular file: npz has a description beside it"));
    }

    #[test]
    fn two_outputs_are_two_files() {
        let folder = Folder::new();
        let both = |html: &str| folder.files().writes("--json", &folder.at("new")).writes("--html", &folder.at(html));
        assert_eq!(folder.refused(&both("model/../new")), "--json and --html are one file: model/../new");
        both("other").check().unwrap();
        #[cfg(unix)]
        {
            // A link to a file that does not exist yet.
            std::os::unix::fs::symlink("new", folder.at("link")).unwrap();
            assert_eq!(folder.refused(&both("link")), "--json and --html are one file: link");
        }
        let inside = Files::new().writes_in("--out", &folder.at("made"), &["trace.safetensors", "report.html"]);
        let clash = inside.writes("--json", &folder.at("made/report.html"));
        assert_eq!(folder.refused(&clash), "--out: report.html and --json are one file: made/report.html");
        let standard = PathBuf::from("/dev/stdout");
        let twice = Files::new().writes("--json", &standard).writes("--html", &standard);
        assert_eq!(folder.refused(&twice), "--json and --html are one file: /dev/stdout");
    }

    #[test]
    fn what_cannot_be_written_is_said_and_nothing_is_left_behind() {
        let folder = Folder::new();
        let before = folder.names();
        let one = |name: &str| folder.files().writes("--json", &folder.at(name));
        let missing = folder.refused(&one("missing/x"));
        assert!(missing.starts_with("--json: cannot write missing/x: there is no folder"), "{missing}");
        let expected = "--json: cannot write model: is a folder, give the name of a file";
        assert_eq!(folder.refused(&one("model")), expected);
        let below = Files::new().writes_in("--out", &folder.at("trace/sub"), &["report.html"]);
        assert!(folder.refused(&below).starts_with("--out: "), "{}", folder.refused(&below));
        Files::new().writes_in("--out", &folder.at("a/b/c"), &["report.html"]).check().unwrap();
        let made = Files::new().writes_in("--out", &folder.at("a/b"), &["report.html"]);
        made.writes("--json", &folder.at("a/b/figures.json")).check().unwrap();
        assert_eq!(folder.names(), before);
    }

    #[test]
    fn a_folder_of_shards_has_no_foreign_parts() {
        let folder = Folder::new();
        fs::write(folder.at("index.json"), "{}").unwrap();
        fs::write(folder.at("shard-00000.safetensors"), "shard").unwrap();
        for name in ["shard-00000.safetensors", "shard-00007.safetensors", "index.json", ".lock"] {
            let error = Files::new().writes("OUTPUT", &folder.at(name)).check().unwrap_err().to_string();
            assert!(error.starts_with("OUTPUT is a part of a folder of shards: "), "{name}: {error}");
        }
        Files::new().writes("OUTPUT", &folder.at("other.json")).check().unwrap();
    }

    #[test]
    fn the_description_beside_an_archive_is_an_input() {
        let folder = Folder::new();
        fs::write(folder.at("n.npz"), "routing").unwrap();
        fs::write(folder.at("n.meta.json"), "{}").unwrap();
        let files = Files::new().reads("the trace", folder.at("n.npz")).writes("--json", &folder.at("n.meta.json"));
        let error = files.check().unwrap_err().to_string();
        assert!(error.starts_with("--json is the description of the trace that is read: "), "{error}");
    }
}
