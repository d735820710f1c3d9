//! What the programs print.

use std::io::{self, ErrorKind, Write};
use std::sync::{Mutex, PoisonError};

use crate::shown::shown_lines;

/// The standard output of the program.
struct Output {
    /// Why nothing is printed any more.
    failed: Option<io::Error>,
    /// A file that was asked for goes there. Lines go to standard error instead.
    taken: bool,
}

static OUTPUT: Mutex<Output> = Mutex::new(Output { failed: None, taken: false });

/// Prints lines to standard output, control characters escaped. If that fails the program goes on, so that the files are
/// written that were asked for; [`run`](crate::run) reports the failure at the end.
#[macro_export]
macro_rules! outln {
    () => { $crate::print_line("") };
    ($($argument:tt)*) => { $crate::print_line(&format!($($argument)*)) };
}

/// Prints lines to standard error, control characters escaped. A failure is ignored.
#[macro_export]
macro_rules! errln {
    ($($argument:tt)*) => { $crate::print_error_line(&format!($($argument)*)) };
}

/// Prints a text and a line end to standard output; see [`outln`].
pub fn print_line(text: &str) {
    let mut output = OUTPUT.lock().unwrap_or_else(PoisonError::into_inner);
    if output.taken {
        print_error_line(text);
    } else if output.failed.is_none() {
        output.failed = write_line(io::stdout().lock(), text).err();
    }
}

/// Prints a text and a line end to standard error; see [`errln`].
pub fn print_error_line(text: &str) {
    // There is no other place to report to.
    let _ = write_line(io::stderr().lock(), text);
}

fn write_line(mut to: impl Write, text: &str) -> io::Result<()> {
    to.write_all(format!("{}\n", shown_lines(text)).as_bytes())
}

/// Leaves standard output to a file that was asked for.
pub(crate) fn take_standard_output() {
    OUTPUT.lock().unwrap_or_else(PoisonError::into_inner).taken = true;
}

/// Whether an error comes from standard output whose reader has gone.
pub(crate) fn is_closed_output(error: &anyhow::Error) -> bool {
    let taken = OUTPUT.lock().unwrap_or_else(PoisonError::into_inner).taken;
    let is_closed = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
    };
    taken && error.chain().any(is_closed)
}

/// Ends printing.
///
/// # Errors
/// Why lines were not printed, unless their reader has gone.
pub(crate) fn finish() -> io::Result<()> {
    let failed = OUTPUT.lock().unwrap_or_else(PoisonError::into_inner).failed.take();
    match failed.map_or_else(|| io::stdout().flush(), Err) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}
