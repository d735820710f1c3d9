//! Files that are whole or absent, and folders with one writer.

mod destination;
mod folder_lock;
mod temporary;
#[cfg(test)]
mod tests;
mod whole_file;

pub use destination::Destination;
pub use folder_lock::FolderLock;
pub use temporary::abandon_writes;
pub(crate) use temporary::{TEMPORARY, sync_directory};
pub use whole_file::{WholeFile, write_whole};
