//! Router capture and trace files for Mixture-of-Experts language models.
//!
//! A *trace* records which experts a router chose for every token and layer. This crate holds the vocabulary that the
//! rest of the workspace shares ([`LayerId`], [`ExpertId`], [`ExpertSet`], [`Geometry`], [`Sequence`],
//! [`RoutingMatrix`]), the two seams to other code ([`RouterObserver`] for models, [`RoutingSource`] for analyses), and
//! the file format: one safetensors file ([`TraceFile`], [`write_trace`]) or a directory of shards
//! ([`ShardedWriter`], [`ShardedTrace`]). The format is specified in `docs/trace-format.md`.
//!
//! ```
//! use moe_trace::{
//!     Geometry, MemoryTrace, Phase, RouterObserver, Recorder, RoutingEvent, RoutingSource, LayerId,
//! };
//!
//! // One MoE layer of 4 experts, top-2; a prompt of two tokens is observed.
//! let geometry = Geometry::decoder(1, 4, 2)?;
//! let mut recorder = Recorder::new(MemoryTrace::new(geometry));
//! recorder.routed(&RoutingEvent {
//!     sequence: 0,
//!     layer: LayerId(0),
//!     phase: Phase::Prefill,
//!     token_ids: &[17, 42],
//!     experts: &[3, 1, 1, 0],
//!     weights: &[0.7, 0.3, 0.6, 0.4],
//!     logits: None,
//! });
//! recorder.sequence_end(0);
//! let trace = recorder.finish()?;
//!
//! let sequence = trace.sequence(0)?;
//! assert_eq!(sequence.len(), 2);
//! assert_eq!(sequence.experts(1, LayerId(0)).map(|e| e.0).collect::<Vec<_>>(), [1, 0]);
//! # Ok::<(), moe_trace::TraceError>(())
//! ```

mod columns;
mod concatenation;
mod error;
mod expert_set;
#[cfg(feature = "import")]
mod export;
mod files;
mod format;
mod geometry;
mod ids;
#[cfg(feature = "import")]
mod import;
mod import_report;
mod layer_copy;
mod memory;
mod model_config;
mod observer;
mod open_sequence;
mod phase;
mod queued;
mod recorder;
mod routing_matrix;
mod row_check;
#[cfg(target_arch = "x86_64")]
mod row_rotation;
mod sequence;
mod sequence_buf;
mod shards;
mod source;
mod stream;
mod synthetic;
mod token_text;
mod view;

pub use concatenation::Concatenation;
pub use error::{Place, Result, TraceError};
pub use expert_set::ExpertSet;
#[cfg(feature = "import")]
pub use export::{Exporter, exporter, exporters};
pub use files::{Destination, FolderLock, WholeFile, abandon_writes, write_whole};
pub use format::{TraceFile, write_trace};
pub use geometry::{Geometry, MoeLayer, Stack};
pub use ids::{DomainId, ExpertId, LayerId};
#[cfg(feature = "import")]
pub use import::{
    Import, ImportOptions, Importer, Input, InputBytes, InputReader, Opened, Sample, detect_importer, import, importer,
    importers, open_import, open_or_import,
};
pub use import_report::{ImportReport, Warning, WarningKind};
pub use memory::MemoryTrace;
pub use model_config::{ModelConfig, ModelSizes, StackLayers};
pub use observer::{IgnoreRouting, RouterObserver, RoutingEvent};
pub use phase::Phase;
pub use queued::{BackPressure, QueuedSink};
pub use recorder::{Recorder, SequenceSink};
pub use routing_matrix::RoutingMatrix;
pub use sequence::{EMPTY_SLOT, Sequence};
pub use sequence_buf::SequenceBuf;
pub use shards::{Notice, ShardedTrace, ShardedWriter};
pub use source::{RoutingSource, open};
pub use stream::SequenceStream;
pub use synthetic::{Synthetic, SyntheticOptions};
pub use token_text::TokenText;
pub use view::{Selection, TraceView};

/// Private parsers, for the fuzz targets alone.
#[cfg(all(fuzzing, feature = "import"))]
pub mod fuzzing {
    pub use crate::import::read_pickle as pickle;
}
