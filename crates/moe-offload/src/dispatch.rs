//! Grouping of tokens by expert, and the sum of a token's experts in an order that no grouping changes.

use std::ops::Range;

use candle_core::{CpuStorage, Storage, Tensor};
use moe_trace::{EMPTY_SLOT, ExpertId, LayerId};

use crate::error::{OffloadError, Result};
use crate::routes::Routes;

/// The tokens of one call, sorted by expert: what an [`ExpertBank`](crate::ExpertBank) makes of its routes first.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use moe_offload::{Dispatch, Routes};
/// use moe_trace::{LayerId, Phase};
///
/// let weights = Tensor::new(&[[0.7f32, 0.3], [0.6, 0.4]], &Device::Cpu)?;
/// let routes = Routes::new(vec![5, 0, 2, 5], weights, Phase::Decode)?;
/// let dispatch = Dispatch::new(LayerId(0), 2, &routes, 8)?;
/// let experts: Vec<_> = dispatch.groups().iter().map(|group| group.expert).collect();
/// assert_eq!(experts, [0, 2, 5]);
/// assert_eq!(dispatch.rows(2), [0, 1]);
/// assert_eq!(dispatch.places(2), [0, 3]);
/// # Ok::<(), moe_offload::OffloadError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// Experts that have tokens, ascending.
    groups: Vec<Group>,
    /// Tokens of the groups, one after the other, ascending in each.
    rows: Vec<u32>,
    /// Their places among the `tokens x top_k` outputs.
    places: Vec<u32>,
    tokens: usize,
    top_k: usize,
}

/// The tokens that one expert serves.
#[derive(Clone, Debug)]
pub struct Group {
    /// The expert.
    pub expert: usize,
    /// Its part of the rows of all groups.
    pub range: Range<usize>,
}

impl Dispatch {
    /// Sorts the routes of a batch of `tokens` by expert, and checks them against a layer of `experts`.
    ///
    /// # Errors
    /// [`OffloadError::Routes`] if they are of another number of tokens, [`OffloadError::ExpertOutOfRange`].
    pub fn new(layer: LayerId, tokens: usize, routes: &Routes, experts: usize) -> Result<Dispatch> {
        let top_k = routes.top_k();
        if routes.tokens() != tokens {
            return Err(OffloadError::Routes { field: "tokens", value: routes.tokens(), expected: tokens });
        }
        let mut ends = vec![0; experts];
        for (place, &expert) in routes.experts().iter().enumerate().filter(|&(_, &expert)| expert != EMPTY_SLOT) {
            let expert = usize::from(expert);
            let end = ends.get_mut(expert);
            let token = place / top_k;
            *end.ok_or(OffloadError::ExpertOutOfRange { layer, token, expert, experts })? += 1;
        }
        let mut total = 0;
        let mut groups = Vec::with_capacity(experts.min(tokens * top_k));
        for (expert, count) in ends.iter_mut().enumerate() {
            let start = total;
            total += *count;
            if *count > 0 {
                groups.push(Group { expert, range: start..total });
            }
            // Where the expert's next row goes.
            *count = start;
        }
        let (mut rows, mut places) = (vec![0; total], vec![0; total]);
        let divisor = u32::try_from(top_k).expect("top_k is at most the number of places, which are u32");
        for (place, &expert) in (0u32..).zip(routes.experts()).filter(|&(_, &expert)| expert != EMPTY_SLOT) {
            let next = &mut ends[usize::from(expert)];
            (rows[*next], places[*next]) = (place / divisor, place);
            *next += 1;
        }
        Ok(Dispatch { groups, rows, places, tokens, top_k })
    }

    /// Groups in ascending order of expert; an expert without tokens has none.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Rows of all groups together.
    pub fn row_count(&self) -> usize {
        self.rows.len()
    }

    /// Rows of the batch that the expert of group number `group` serves, ascending.
    pub fn rows(&self, group: usize) -> &[u32] {
        &self.rows[self.groups[group].range.clone()]
    }

    /// Places of those rows among the `tokens x top_k` slots of the routes.
    pub fn places(&self, group: usize) -> &[u32] {
        &self.places[self.groups[group].range.clone()]
    }

    /// Index of an expert's group.
    ///
    /// # Panics
    /// If the expert has no tokens.
    pub(crate) fn group_of(&self, expert: usize) -> usize {
        self.groups.binary_search_by_key(&expert, |group| group.expert).expect("plans cover exactly the groups")
    }

    /// Checks that experts give finite numbers of tokens that are finite; `sorted` are the outputs of all groups.
    fn check_finite(&self, layer: LayerId, sorted: &Tensor, hidden: &Tensor) -> Result<()> {
        let Some(row) = first_not_finite(sorted)? else { return Ok(()) };
        let Some(group) = self.groups.iter().find(|group| group.range.contains(&row)) else { return Ok(()) };
        let token = self.rows[row] as usize;
        if first_not_finite(&hidden.narrow(0, token, 1)?.contiguous()?)?.is_some() {
            return Ok(());
        }
        let expert = ExpertId(u16::try_from(group.expert).expect("routes are u16"));
        Err(OffloadError::NotFinite { layer, expert, token, dtype: hidden.dtype().as_str() })
    }

    /// Puts the outputs of the groups, in the order of [`groups`](Self::groups), back to their tokens and sums each
    /// token's experts by weight in rank order.
    ///
    /// # Errors
    /// [`OffloadError::NotFinite`] for an output in host memory that is not finite though its token is.
    pub(crate) fn combine(
        &self,
        layer: LayerId,
        outputs: Vec<Tensor>,
        hidden: &Tensor,
        routes: &Routes,
    ) -> Result<Tensor> {
        let (width, device) = (hidden.dim(1)?, hidden.device());
        let (mut outputs, mut row_of) = (outputs, vec![u32::MAX; self.tokens * self.top_k]);
        for (row, &place) in (0u32..).zip(&self.places) {
            row_of[place as usize] = row;
        }
        let mut weights = routes.weights().to_dtype(hidden.dtype())?;
        let rows = self.rows.len();
        if rows < row_of.len() {
            // Empty slots read a row of zeros behind the last one, and their weight, whatever it is, counts as 0.
            outputs.push(Tensor::zeros((1, width), hidden.dtype(), device)?);
            let used: Vec<u8> = row_of.iter().map(|&row| u8::from(row != u32::MAX)).collect();
            let used = Tensor::from_vec(used, weights.shape(), device)?;
            weights = used.where_cond(&weights, &weights.zeros_like()?)?;
            let zero_row = u32::try_from(rows).expect("places are u32");
            row_of.iter_mut().filter(|row| **row == u32::MAX).for_each(|row| *row = zero_row);
        }
        let sorted = Tensor::cat(&outputs, 0)?;
        self.check_finite(layer, &sorted, hidden)?;
        let row_of = Tensor::from_vec(row_of, self.tokens * self.top_k, device)?;
        let ranked = sorted.index_select(&row_of, 0)?.reshape((self.tokens, self.top_k, width))?;
        Ok(ranked.broadcast_mul(&weights.unsqueeze(2)?)?.sum(1)?)
    }
}

/// The number of the first row that has an infinite number or a NaN; none on a device, where looking would wait for it.
fn first_not_finite(rows: &Tensor) -> Result<Option<usize>> {
    let (storage, layout) = rows.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else { return Ok(None) };
    let at = match storage {
        CpuStorage::F32(values) => values[start..end].iter().position(|value| !value.is_finite()),
        CpuStorage::F16(values) => values[start..end].iter().position(|value| !value.is_finite()),
        CpuStorage::BF16(values) => values[start..end].iter().position(|value| !value.is_finite()),
        _ => None,
    };
    Ok(at.map(|at| at / rows.dims()[1].max(1)))
}
