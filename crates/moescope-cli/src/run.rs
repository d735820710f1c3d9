//! How a program begins and ends.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::print::{finish, is_closed_output};

/// Runs a program: prints the error that it ends with, and returns its exit code.
///
/// - A closed pipe behind standard output ends the program with success; other failures of printing are errors.
/// - SIGINT and SIGTERM remove the temporary files of the program before they end it.
/// - A mapped file that another process cuts ends the program with an error.
///
/// Call [`set_threads`](crate::set_threads) before, because signals have a thread of their own.
pub fn run(program: impl FnOnce() -> Result<()>) -> ExitCode {
    #[cfg(unix)]
    let watched = signals::watch().context("cannot watch signals");
    #[cfg(not(unix))]
    let watched = Ok(());
    let ended = watched.and_then(|()| program());
    let printed = finish().context("cannot write to standard output");
    match ended.and(printed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_output(&error) => ExitCode::SUCCESS,
        Err(error) => {
            crate::errln!("Error: {}", report(&error));
            ExitCode::FAILURE
        }
    }
}

/// Formats an error and its causes, a line each. A cause that the line before it repeats is left out.
fn report(error: &anyhow::Error) -> String {
    let mut lines: Vec<String> = Vec::new();
    for cause in error.chain().map(ToString::to_string) {
        if lines.last().is_none_or(|line| !line.ends_with(&cause)) {
            lines.push(cause);
        }
    }
    match &lines[..] {
        [error] => error.clone(),
        [error, cause] => format!("{error}\n\nCaused by:\n    {cause}"),
        [error, causes @ ..] => {
            let numbered: String =
                causes.iter().enumerate().map(|(number, cause)| format!("\n    {number}: {cause}")).collect();
            format!("{error}\n\nCaused by:{numbered}")
        }
        [] => String::new(),
    }
}

#[cfg(unix)]
mod signals {
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use signal_hook::consts::{SIGBUS, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;
    use signal_hook::low_level;

    /// Whether signals are watched already.
    static WATCHED: AtomicBool = AtomicBool::new(false);

    pub(super) fn watch() -> io::Result<()> {
        if WATCHED.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                moe_trace::abandon_writes();
                // The process ends as if it had no handler.
                let _ = low_level::emulate_default_handler(signal);
            }
        })?;
        watch_mapped_files()
    }

    /// Reading a page of a mapped file that is no longer in the file raises SIGBUS.
    #[expect(unsafe_code, reason = "a handler of signals")]
    fn watch_mapped_files() -> io::Result<()> {
        let told = || {
            let text = b"Error: a file became shorter while it was read; wait for its writer, then run this again\n";
            // Standard error may be closed.
            let _ = rustix::io::write(rustix::stdio::stderr(), text);
            low_level::exit(1);
        };
        // SAFETY: the handler only writes to a file descriptor and ends the process; both are safe in a signal handler.
        unsafe { low_level::register(SIGBUS, told) }.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOLDER: &str = "MOE_EXAMPLES_CUT_FOLDER";

    /// Not a test of its own: a program that reads a sequence whose pages are gone.
    #[cfg(unix)]
    #[test]
    fn the_child_reads_a_sequence_that_is_cut() {
        use moe_trace::RoutingSource;
        let Some(folder) = std::env::var_os(FOLDER) else { return };
        let path = std::path::Path::new(&folder).join("trace.safetensors");
        let code = run(|| {
            let trace = moe_trace::open(&path)?;
            let sequence = trace.sequence(0)?;
            std::fs::File::options().write(true).open(&path)?.set_len(100)?;
            let used: usize =
                (0..sequence.len()).map(|token| sequence.experts(token, moe_trace::LayerId(0)).count()).sum();
            crate::outln!("read {used} experts");
            Ok(())
        });
        std::process::exit(if code == ExitCode::SUCCESS { 0 } else { 2 });
    }

    /// What reading a lost page raises is an error of the program, not its death.
    #[cfg(unix)]
    #[test]
    fn a_page_that_is_lost_ends_the_program_with_an_error() {
        use moe_trace::{Geometry, SequenceStream, Synthetic, SyntheticOptions, write_trace};
        let folder = tempfile::tempdir().unwrap();
        let dials = SyntheticOptions { sequences: 1, tokens: 1 << 16, ..SyntheticOptions::default() };
        let trace = Synthetic::new(Geometry::decoder(1, 16, 2).unwrap(), dials).collect().unwrap();
        write_trace(folder.path().join("trace.safetensors"), &trace).unwrap();
        let mut program = std::process::Command::new(std::env::current_exe().unwrap());
        program.args(["run::tests::the_child_reads_a_sequence_that_is_cut", "--exact", "--nocapture"]);
        let ended = program.env(FOLDER, folder.path()).output().unwrap();
        let errors = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{errors}");
        assert!(errors.contains("Error: a file became shorter while it was read; wait for its writer"), "{errors}");
    }

    #[test]
    fn a_cause_that_repeats_the_line_before_is_left_out() {
        let cause = || anyhow::anyhow!("expected `:` at line 1");
        assert_eq!(report(&cause()), "expected `:` at line 1");
        let twice = cause().context("a.json: expected `:` at line 1").context("cannot open a.json");
        assert_eq!(report(&twice), "cannot open a.json\n\nCaused by:\n    a.json: expected `:` at line 1");
        let three = cause().context("b").context("c");
        assert_eq!(report(&three), "c\n\nCaused by:\n    0: b\n    1: expected `:` at line 1");
    }
}
