//! Checkpoint files of experts.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use moe_trace::{ExpertId, LayerId, WholeFile};
use rayon::prelude::*;

use super::expert_store::ExpertStore;
use crate::checkpoint::{ALIGNMENT, ALIGNMENT_KEY, MAGIC, TYPE_STRING, TYPE_U32, VERSION, stacked_name};
use crate::error::{OffloadError, Result};
use crate::expert::ExpertShape;
use crate::weights::WeightType;

/// Writes the experts of a store to a GGUF file, stacked by layer and projection, which
/// [`MappedStore::open_gguf`](crate::MappedStore::open_gguf) opens.
///
/// Experts are fetched and written a few at a time, one a thread; the bytes do not depend on the number of threads.
/// `progress` is told after each the bytes written so far and the bytes of all. The file is a [`WholeFile`]; a pipe or a device
/// cannot take it, since its parts are written out of order.
///
/// # Errors
/// [`OffloadError::Size`] for a shape that no model has; an expert that cannot be fetched; [`OffloadError::Write`].
///
/// ```
/// use moe_offload::{ExpertShape, ExpertStore, MappedStore, RandomExperts, WeightType, write_gguf};
/// // The experts of gpt-oss-20b, but for two of its 24 layers, and narrower.
/// let shape = ExpertShape { layers: 2, experts: 32, hidden: 96, intermediate: 96 };
/// let random = RandomExperts::new(shape, WeightType::Q4_0, 1)?;
/// let directory = tempfile::tempdir()?;
/// let path = directory.path().join("experts.gguf");
/// write_gguf(&random, &path, &mut |_, _| {})?;
/// let store = MappedStore::open_gguf(&[path])?;
/// assert_eq!((store.shape(), store.bytes()), (shape, 2 * 32 * 3 * 96 * 96 / 32 * 18));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_gguf(store: &dyn ExpertStore, path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
    store.check()?;
    let shape = store.shape();
    let (header, regions, len) = header(store);
    let failed = |source| OffloadError::Write { path: path.to_owned(), source };
    let mut file = WholeFile::create(path).map_err(failed)?;
    file.set_len(len).map_err(failed)?;
    let mut write =
        |at: u64, bytes: &[u8]| file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(bytes)).map_err(failed);
    write(0, &header)?;
    let (total, mut done) = (store.bytes(), 0);
    let experts: Vec<ExpertId> = (0..).take(shape.experts).map(ExpertId).collect();
    for (layer, regions) in (0..).map(LayerId).zip(&regions) {
        for some in experts.chunks(rayon::current_num_threads()) {
            let fetched: Vec<_> = some.par_iter().map(|&expert| store.fetch_checked(layer, expert)).collect();
            for (&expert, weights) in some.iter().zip(fetched) {
                weights?.with_bytes(&mut |projections| {
                    for (bytes, &start) in projections.each().into_iter().zip(regions) {
                        write(start + (expert.index() * bytes.len()) as u64, bytes)?;
                        done += bytes.len() as u64;
                    }
                    Ok(())
                })?;
                progress(done, total);
            }
        }
    }
    file.commit().map_err(failed)
}

/// The header, where the gate, up and down projections of each layer begin, and the length of the file.
fn header(store: &dyn ExpertStore) -> (Vec<u8>, Vec<[u64; 3]>, u64) {
    let (shape, types) = (store.shape(), store.weight_types());
    let ExpertShape { layers, experts, hidden, intermediate } = shape;
    let mut header = Vec::new();
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend((3 * layers as u64).to_le_bytes());
    header.extend(6u64.to_le_bytes());
    put_string(&mut header, "general.architecture");
    header.extend(TYPE_STRING.to_le_bytes());
    put_string(&mut header, "experts");
    let sizes = [
        (ALIGNMENT_KEY, ALIGNMENT),
        ("experts.block_count", layers),
        ("experts.expert_count", experts),
        ("experts.embedding_length", hidden),
        ("experts.expert_feed_forward_length", intermediate),
    ];
    for (key, value) in sizes {
        put_string(&mut header, key);
        header.extend(TYPE_U32.to_le_bytes());
        header.extend(u32::try_from(value).expect("checked sizes are below 2^24").to_le_bytes());
    }
    let (mut offset, mut regions) = (0, Vec::with_capacity(layers));
    for (block, types) in types.iter().enumerate() {
        let mut place = |which: &str, weights: WeightType, (rows, columns): (usize, usize)| {
            put_string(&mut header, &stacked_name(block, which));
            header.extend(3u32.to_le_bytes());
            [columns, rows, experts].iter().for_each(|&dim| header.extend((dim as u64).to_le_bytes()));
            header.extend(weights.gguf_id().to_le_bytes());
            header.extend(u64::to_le_bytes(offset));
            let start = offset;
            offset += ((experts * weights.bytes(rows, columns)) as u64).next_multiple_of(ALIGNMENT as u64);
            start
        };
        let [gate, up, down] = shape.projections();
        regions.push([place("gate", types.gate, gate), place("up", types.up, up), place("down", types.down, down)]);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT), 0);
    let data = header.len() as u64;
    regions.iter_mut().flatten().for_each(|start| *start += data);
    (header, regions, data + offset)
}

fn put_string(header: &mut Vec<u8>, text: &str) {
    header.extend((text.len() as u64).to_le_bytes());
    header.extend(text.as_bytes());
}
