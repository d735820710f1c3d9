//! Memory of this machine, where Linux tells.

use std::fs;

/// Bytes that processes may still take.
pub(crate) fn available_bytes() -> Option<u64> {
    kibibytes("/proc/meminfo", "MemAvailable:")
}

/// The most bytes that this process had so far.
pub(crate) fn peak_bytes() -> Option<u64> {
    kibibytes("/proc/self/status", "VmHWM:")
}

fn kibibytes(file: &str, field: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(number * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn linux_tells() {
        let (available, peak) = (super::available_bytes().unwrap(), super::peak_bytes().unwrap());
        assert!(available > 1 << 20 && peak > 1 << 18);
        assert_eq!(super::kibibytes("/proc/meminfo", "NoSuchField:"), None);
    }
}
