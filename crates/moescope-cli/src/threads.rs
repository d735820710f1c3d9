//! The number of threads of tensor operations.

/// Sets `RAYON_NUM_THREADS` unless the user has set it. Call it first thing in `main`.
///
/// candle takes the number of threads of a matrix product from this variable; without it, it asks the operating system
/// for the number of cores at every product, which costs more than a small product itself.
///
/// # Panics
/// If the process has other threads already (Linux only).
#[expect(unsafe_code, reason = "the environment is the only way to tell candle")]
pub fn set_threads(threads: usize) {
    const VARIABLE: &str = "RAYON_NUM_THREADS";
    if std::env::var_os(VARIABLE).is_some() {
        return;
    }
    if let Ok(tasks) = std::fs::read_dir("/proc/self/task") {
        assert_eq!(tasks.count(), 1, "threads are set before any is started");
    }
    // SAFETY: no other thread exists that could read the environment at the same time.
    unsafe { std::env::set_var(VARIABLE, threads.to_string()) };
}

/// Number of processors that this process may use.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
