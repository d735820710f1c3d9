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
