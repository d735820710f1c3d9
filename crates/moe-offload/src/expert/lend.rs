//! Bytes of an expert on their way from a store to whoever copies them.

use std::fmt;
use std::marker::PhantomData;

use super::weights::ExpertWeights;
use crate::error::{OffloadError, Result};
use crate::weights::BlockMatrix;

/// Bytes of the three projections of an expert, each row by row.
#[derive(Clone, Copy, Debug)]
pub struct ProjectionBytes<'a> {
    /// The gate projection, `[intermediate, hidden]`.
    pub gate: &'a [u8],
    /// The up projection, `[intermediate, hidden]`.
    pub up: &'a [u8],
    /// The down projection, `[hidden, intermediate]`.
    pub down: &'a [u8],
}

/// Names of the projections, in the order of [`ProjectionBytes::each`].
pub(crate) const PROJECTIONS: [&str; 3] = ["gate", "up", "down"];

impl<'a> ProjectionBytes<'a> {
    /// Returns the bytes of gate, up and down, in this order.
    pub fn each(self) -> [&'a [u8]; 3] {
        [self.gate, self.up, self.down]
    }

    /// Returns the bytes of all three, one after the other.
    pub fn concat(self) -> Vec<u8> {
        self.each().concat()
    }
}

impl<'a> From<[&'a [u8]; 3]> for ProjectionBytes<'a> {
    /// Names the bytes of gate, up and down, in this order.
    fn from([gate, up, down]: [&'a [u8]; 3]) -> ProjectionBytes<'a> {
        ProjectionBytes { gate, up, down }
    }
}

/// A request for the bytes of one expert, which an [`ExpertStore`](crate::ExpertStore) must serve once.
///
/// Serving it consumes it and gives the [`Lent`] that [`ExpertStore::lend`](crate::ExpertStore::lend) returns: a store that
/// lends nothing, or lends twice, does not compile. Bytes of a wrong length are an error.
///
/// ```compile_fail,E0382
/// use moe_offload::{Lend, Lent, ProjectionBytes, Result};
/// fn twice<'l>(lend: Lend<'l>, bytes: ProjectionBytes<'_>) -> Result<Lent<'l>> {
///     lend.bytes(bytes)?;
///     lend.bytes(bytes)
/// }
/// ```
pub struct Lend<'l> {
    /// Bytes of each projection.
    expected: [usize; 3],
    to: To<'l>,
}

/// Proof that a [`Lend`] was served.
#[derive(Debug)]
#[must_use = "ExpertStore::lend returns it"]
pub struct Lent<'l> {
    /// The store has written the bytes where they are needed, without a copy between.
    straight: bool,
    /// Of no other request: that of an earlier call has another lifetime.
    request: PhantomData<fn(&'l ()) -> &'l ()>,
}

/// What happens to the bytes.
enum To<'l> {
    Reader(&'l mut (dyn FnMut(ProjectionBytes<'_>) -> Result<()> + 'l)),
    /// They replace those of weights in host memory.
    Weights(&'l mut ExpertWeights),
}

impl<'l> Lend<'l> {
    /// Asks for projections of so many bytes.
    pub(crate) fn to_reader(
        expected: [usize; 3],
        read: &'l mut (dyn FnMut(ProjectionBytes<'_>) -> Result<()> + 'l),
    ) -> Lend<'l> {
        Lend { expected, to: To::Reader(read) }
    }

    /// Asks for bytes that replace those of weights in host memory.
    pub(crate) fn to_weights(weights: &'l mut ExpertWeights) -> Result<Lend<'l>> {
        let mut expected = [0; 3];
        weights.with_bytes(&mut |bytes| {
            expected = bytes.each().map(<[u8]>::len);
            Ok(())
        })?;
        Ok(Lend { expected, to: To::Weights(weights) })
    }

    /// Lends bytes.
    ///
    /// # Errors
    /// [`OffloadError::StoreBytes`] for bytes of another length than the expert's; what the reader of the bytes says.
    pub fn bytes(mut self, bytes: ProjectionBytes<'_>) -> Result<Lent<'l>> {
        self.take(bytes)?;
        Ok(Lent { straight: false, request: PhantomData })
    }

    /// Lends the bytes of weights in host memory.
    ///
    /// # Errors
    /// As [`bytes`](Self::bytes), and [`OffloadError::NotOnHost`].
    pub fn weights(mut self, weights: &ExpertWeights) -> Result<Lent<'l>> {
        weights.with_bytes(&mut |bytes| self.take(bytes))?;
        Ok(Lent { straight: false, request: PhantomData })
    }

    fn take(&mut self, bytes: ProjectionBytes<'_>) -> Result<()> {
        for ((projection, found), expected) in PROJECTIONS.into_iter().zip(bytes.each()).zip(self.expected) {
            if found.len() != expected {
                return Err(OffloadError::StoreBytes { projection, found: found.len(), expected });
            }
        }
        match &mut self.to {
            To::Reader(read) => read(bytes),
            To::Weights(weights) => weights.overwrite(bytes),
        }
    }

    /// The blocks of gate, up and down that the bytes are to replace, if that is what is asked for.
    pub(crate) fn blocks_mut(&mut self) -> Option<[&mut BlockMatrix; 3]> {
        match &mut self.to {
            To::Weights(weights) => weights.blocks_mut(),
            To::Reader(_) => None,
        }
    }

    /// Tells that all [blocks](Self::blocks_mut) have been replaced.
    pub(crate) fn filled(self) -> Lent<'l> {
        Lent { straight: true, request: PhantomData }
    }
}

impl Lent<'_> {
    /// Returns true if the store has written the bytes where they are needed, without a copy between.
    pub fn is_straight(&self) -> bool {
        self.straight
    }
}

impl fmt::Debug for Lend<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lend(projections of {:?} bytes)", self.expected)
    }
}

#[cfg(test)]
mod tests {
    use moe_trace::{ExpertId, LayerId};

    use super::*;
    use crate::expert::shape::ExpertShape;
    use crate::expert::types::ExpertTypes;
    use crate::memory::FileReads;
    use crate::store::{ExpertStore, MappedStore, RandomExperts, write_gguf};
    use crate::weights::WeightType;

    const SHAPE: ExpertShape = ExpertShape { layers: 1, experts: 4, hidden: 1056, intermediate: 992 };

    fn bytes(store: &dyn ExpertStore, expert: u16) -> Vec<u8> {
        let mut all = Vec::new();
        store
            .with_bytes(LayerId(0), ExpertId(expert), &mut |bytes| {
                all = bytes.concat();
                Ok(())
            })
            .unwrap();
        all
    }

    /// Projections that are large enough are read where they stay, at places that differ modulo a page.
    #[test]
    fn a_file_fills_weights_straight_or_by_a_copy() {
        let directory = tempfile::tempdir().unwrap();
        for (weight_type, straight) in [(WeightType::Q8_0, true), (WeightType::F16, false)] {
            let path = [directory.path().join("experts.gguf")];
            let random = RandomExperts::new(SHAPE, weight_type, 3).unwrap();
            write_gguf(&random, &path[0], &mut |_, _| {}).unwrap();
            let store = MappedStore::open_gguf(&path).unwrap().with_reads(FileReads::Direct).unwrap();
            let mut weights = random.fetch(LayerId(0), ExpertId(0)).unwrap();
            // The memory of the third is read to again while somebody still holds what it had.
            for expert in [1, 2, 3, 3, 0] {
                let held = (expert == 3).then(|| weights.clone());
                assert_eq!(
                    (&store as &dyn ExpertStore).load_into(LayerId(0), ExpertId(expert), &mut weights).unwrap(),
                    straight
                );
                let mut found = Vec::new();
                weights
                    .with_bytes(&mut |bytes| {
                        found = bytes.concat();
                        Ok(())
                    })
                    .unwrap();
                assert!(found == bytes(&random, expert), "{weight_type}: expert {expert}");
                drop(held);
            }
        }
    }

    /// A store that says one thing and does another.
    #[derive(Debug)]
    struct Wrong {
        types: Vec<ExpertTypes>,
        /// What is added to the bytes of gate, up and down.
        longer: [usize; 3],
        /// What it fetches.
        fetched: WeightType,
    }

    impl ExpertStore for Wrong {
        fn shape(&self) -> ExpertShape {
            ExpertShape { layers: 1, experts: 2, hidden: 8, intermediate: 4 }
        }

        fn weight_types(&self) -> &[ExpertTypes] {
            &self.types
        }

        fn fetch(&self, layer: LayerId, expert: ExpertId) -> Result<ExpertWeights> {
            RandomExperts::new(self.shape(), self.fetched, 0)?.fetch(layer, expert)
        }

        fn lend<'l>(&self, _: LayerId, _: ExpertId, lend: Lend<'l>) -> Result<Lent<'l>> {
            let sizes = self.shape().projection_bytes(self.types[0]);
            let [gate, up, down] = [0, 1, 2].map(|which| vec![0; sizes[which] + self.longer[which]]);
            lend.bytes(ProjectionBytes { gate: &gate, up: &up, down: &down })
        }
    }

    #[test]
    fn bytes_and_weights_of_another_shape_or_type_are_errors() {
        let store = |types, longer, fetched| Wrong { types, longer, fetched };
        let f16 = || vec![WeightType::F16.into()];
        let wrong: &dyn ExpertStore = &store(f16(), [0, 4, 0], WeightType::BF16);
        let message = "the expert store lends 68 bytes as up projection, its shape and types take 64";
        let read = wrong.with_bytes(LayerId(0), ExpertId(0), &mut |_| panic!("nothing is handed out"));
        assert_eq!(read.unwrap_err().to_string(), message);
        assert_eq!(wrong.loads_straight(LayerId(0)).unwrap_err().to_string(), message);
        // As many bytes, but other numbers.
        let error = wrong.fetch_checked(LayerId(0), ExpertId(1)).unwrap_err().to_string();
        let expected = "the expert store fetches [4, 8] bf16 as gate projection, its shape and types say [4, 8] f16";
        assert_eq!(error, expected);
        for types in [vec![], vec![WeightType::F16.into(); 2]] {
            let found = types.len();
            let wrong: &dyn ExpertStore = &store(types, [0; 3], WeightType::F16);
            let message = format!("the expert store has weight types for {found} layers, its shape has 1");
            assert_eq!(wrong.check().unwrap_err().to_string(), message);
        }
        let right: &dyn ExpertStore = &store(f16(), [0; 3], WeightType::F16);
        assert_eq!(bytes(right, 1), vec![0; 3 * 64]);
    }
}
