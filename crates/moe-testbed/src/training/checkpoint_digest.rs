//! The digest of a checkpoint: CRC-32 of the whole file, with zeros in the place of the digest itself.

/// The name of the digest in the JSON object that describes the run.
pub(super) const NAME: &str = "crc32";
/// What stands in its place while it is computed.
pub(super) const ZEROS: &str = "00000000";
/// The name as it stands in the header, which has the object as a string.
const FIELD: &[u8] = br#"\"crc32\":\""#;

/// Enters the digest of a file that has zeros in its place.
///
/// # Panics
/// If the header has no place for it.
pub(super) fn seal(bytes: &mut [u8]) {
    let place = place(bytes).expect("the description of the run has a digest");
    let digest = format!("{:08x}", crc32fast::hash(bytes));
    bytes[place].copy_from_slice(digest.as_bytes());
}

/// Compares the digest of a file with the one that it has; returns what is wrong.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let Some(place) = place(bytes) else { return Err(format!("has no {NAME} in its header")) };
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..place.start]);
    hasher.update(ZEROS.as_bytes());
    hasher.update(&bytes[place.end..]);
    let (found, expected) = (format!("{:08x}", hasher.finalize()), String::from_utf8_lossy(&bytes[place]));
    if found == expected { Ok(()) } else { Err(format!("has the CRC-32 {found}, its header says {expected}")) }
}

/// Where the digits are.
fn place(bytes: &[u8]) -> Option<std::ops::Range<usize>> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let header = rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let start = 8 + header.windows(FIELD.len()).position(|window| window == FIELD)? + FIELD.len();
    bytes.get(start..start + ZEROS.len()).map(|_| start..start + ZEROS.len())
}
