//! How much host memory is free.

use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

use crate::error::Result;

/// Returns the bytes of host memory that the process may still take, whether the machine or its control group is the
/// tighter limit. The page cache counts as free.
pub(crate) fn free_host_bytes() -> Result<u64> {
    let mut system = System::new()?;
    system.refresh_memory();
    let group = group_bytes(&mut system).unwrap_or(u64::MAX);
    Ok(system.available_memory().min(group))
}

/// Bytes that the control group of this process allows, but for those that its processes hold.
fn group_bytes(system: &mut System) -> Option<u64> {
    let pid = sysinfo::get_current_pid().ok()?;
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, ProcessRefreshKind::nothing());
    let limits = system.process(pid)?.cgroup_limits()?;
    Some(limits.total_memory.saturating_sub(limits.rss))
}
