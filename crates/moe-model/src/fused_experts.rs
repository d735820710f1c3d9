//! All experts of a layer as one operation that gradients flow through, for f32 on the CPU.
//!
//! Composed of tensor operations, an expert with a few tokens costs some thirty of them, each with its own buffers, and
//! gathering its tokens costs a gradient of the whole batch. The composed form is the naive twin.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use moe_offload::{Dispatch, Group};
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;

use crate::fused::{slice, with_slice};

/// `y[t] = Σ_j w[t, j] down_e (silu(gate_e x[t]) ⊙ (up_e x[t]))` over the experts `e` of token `t`.
///
/// Arguments are `x`, `[tokens, hidden]`, `w`, `[tokens, top_k]`, and the experts, `[experts, 3 · hidden · width]`: of each
/// its gate, up and down projection, row by row.
pub(crate) struct FusedExperts {
    dispatch: Dispatch,
    sizes: Sizes,
    forward: OnceLock<Forward>,
}

#[derive(Clone, Copy)]
struct Sizes {
    hidden: usize,
    width: usize,
    top_k: usize,
}

/// What the backward pass needs of the forward pass, by row of the dispatch.
struct Forward {
    /// Gate and up projection, `[rows, 2 · width]`.
    projected: Vec<f32>,
    /// Outputs of the experts, `[rows, hidden]`.
    outputs: Vec<f32>,
}

/// Gradients of the three arguments.
struct Backward {
    x: Vec<f32>,
    weights: Vec<f32>,
    experts: Vec<f32>,
}

impl FusedExperts {
    pub(crate) fn new(dispatch: Dispatch, hidden: usize, width: usize, top_k: usize) -> FusedExperts {
        FusedExperts { dispatch, sizes: Sizes { hidden, width, top_k }, forward: OnceLock::new() }
    }

    /// Rows of a batch that a group's expert serves, one after the other.
    fn gather(&self, group: usize, batch: &[f32]) -> Vec<f32> {
        let row = |&row: &u32| &batch[row as usize * self.sizes.hidden..][..self.sizes.hidden];
        self.dispatch.rows(group).iter().flat_map(row).copied().collect()
    }

    fn run(&self, x: &[f32], weights: &[f32], experts: &[f32]) -> (Vec<f32>, Forward) {
        let Sizes { hidden, width, top_k } = self.sizes;
        let mut projected = vec![0f32; self.dispatch.row_count() * 2 * width];
        let mut outputs = vec![0f32; self.dispatch.row_count() * hidden];
        let groups = self.dispatch.groups();
        let parts = split(&mut projected, groups, 2 * width).into_iter().zip(split(&mut outputs, groups, hidden));
        groups.par_iter().enumerate().zip(parts.collect::<Vec<_>>()).for_each(
            |((number, group), (projected, outputs))| {
                let expert = Expert::new(experts, group.expert, self.sizes);
                let x = self.gather(number, x);
                product(&matrix(&x, hidden), &expert.gate_up.t(), projected);
                let inner: Vec<f32> = projected.chunks_exact(2 * width).flat_map(activate).collect();
                product(&matrix(&inner, width), &expert.down.t(), outputs);
            },
        );
        let forward = Forward { projected, outputs };
        let mut y = vec![0f32; x.len()];
        // Rows by place, so that the sum over a token's experts is in rank order.
        for (place, row) in self.rows_by_place() {
            let y = &mut y[place / top_k * hidden..][..hidden];
            let output = &forward.outputs[row * hidden..][..hidden];
            y.iter_mut().zip(output).for_each(|(y, output)| *y += weights[place] * output);
        }
        (y, forward)
    }

    fn run_back(&self, forward: &Forward, x: &[f32], weights: &[f32], experts: &[f32], dy: &[f32]) -> Backward {
        let Sizes { hidden, width, top_k } = self.sizes;
        let mut back =
            Backward { x: vec![0f32; x.len()], weights: vec![0f32; weights.len()], experts: vec![0f32; experts.len()] };
        let by_place: Vec<_> = self.rows_by_place().collect();
        for &(place, row) in &by_place {
            let dy = &dy[place / top_k * hidden..][..hidden];
            let output = &forward.outputs[row * hidden..][..hidden];
            back.weights[place] = dy.iter().zip(output).map(|(dy, output)| dy * output).sum();
        }
        let groups = self.dispatch.groups();
        let mut dx = vec![0f32; self.dispatch.row_count() * hidden];
        let mut chunks = back.experts.chunks_exact_mut(3 * hidden * width).enumerate();
        let gradients = groups
            .iter()
            .map(|group| chunks.find(|(expert, _)| *expert == group.expert).expect("checked by Dispatch").1);
        let parts: Vec<_> = gradients.zip(split(&mut dx, groups, hidden)).collect();
        groups.par_iter().enumerate().zip(parts).for_each(|((number, group), (gradient, dx))| {
            let expert = Expert::new(experts, group.expert, self.sizes);
            let x = self.gather(number, x);
            let mut dy = self.gather(number, dy);
            for (dy, &place) in dy.chunks_exact_mut(hidden).zip(self.dispatch.places(number)) {
                dy.iter_mut().for_each(|dy| *dy *= weights[place as usize]);
            }
            let projected = &forward.projected[group.range.start * 2 * width..group.range.end * 2 * width];
            let inner: Vec<f32> = projected.chunks_exact(2 * width).flat_map(activate).collect();
            let (gate_up, down) = gradient.split_at_mut(2 * hidden * width);
            product(&matrix(&dy, hidden).t(), &matrix(&inner, width), down);
            let mut d_inner = inner;
            product(&matrix(&dy, hidden), &expert.down, &mut d_inner);
            let projected = projected.chunks_exact(2 * width).zip(d_inner.chunks_exact(width));
            let d_projected: Vec<f32> = projected.flat_map(|(projected, d)| activate_back(projected, d)).collect();
            product(&matrix(&d_projected, 2 * width).t(), &matrix(&x, hidden), gate_up);
            product(&matrix(&d_projected, 2 * width), &expert.gate_up, dx);
        });
        for (place, row) in by_place {
            let dx = &dx[row * hidden..][..hidden];
            back.x[place / top_k * hidden..][..hidden].iter_mut().zip(dx).for_each(|(sum, dx)| *sum += dx);
        }
        back
    }

    /// Place and row of every slot that is used, by place.
    fn rows_by_place(&self) -> impl Iterator<Item = (usize, usize)> {
        let groups = 0..self.dispatch.groups().len();
        let mut both: Vec<_> = groups
            .flat_map(|group| self.dispatch.places(group))
            .zip(0..)
            .map(|(&place, row)| (place as usize, row))
            .collect();
        both.sort_unstable();
        both.into_iter()
    }
}

impl CustomOp3 for FusedExperts {
    fn name(&self) -> &'static str {
        "fused-experts"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        experts: &CpuStorage,
        le: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (y, forward) = self.run(slice(x, lx)?, slice(w, lw)?, slice(experts, le)?);
        // An operation runs once: another run would say the same.
        let _ = self.forward.set(forward);
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        experts: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let forward = self.forward.get().expect("the forward pass comes first");
        let grad = grad.contiguous()?;
        let run = |x: &[f32], w: &[f32], experts: &[f32], dy: &[f32]| self.run_back(forward, x, w, experts, dy);
        let back = with_slice(x, |x| {
            with_slice(w, |w| with_slice(experts, |experts| with_slice(&grad, |dy| run(x, w, experts, dy))))
        })????;
        let tensor = |values, like: &Tensor| Tensor::from_vec(values, like.shape(), like.device()).map(Some);
        Ok((tensor(back.x, x)?, tensor(back.weights, w)?, tensor(back.experts, experts)?))
    }
}

/// The projections of one expert.
struct Expert<'a> {
    /// `[2 · width, hidden]`.
    gate_up: ArrayView2<'a, f32>,
    /// `[hidden, width]`.
    down: ArrayView2<'a, f32>,
}

impl<'a> Expert<'a> {
    fn new(experts: &'a [f32], expert: usize, Sizes { hidden, width, .. }: Sizes) -> Expert<'a> {
        let size = 3 * hidden * width;
        let (gate_up, down) = experts[expert * size..][..size].split_at(2 * hidden * width);
        Expert { gate_up: matrix(gate_up, hidden), down: matrix(down, width) }
    }
}

fn matrix(values: &[f32], columns: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((values.len() / columns, columns), values).expect("a whole number of rows")
}

/// `out = a b`.
fn product(a: &ArrayView2<'_, f32>, b: &ArrayView2<'_, f32>, out: &mut [f32]) {
    let mut out = ArrayViewMut2::from_shape((a.nrows(), b.ncols()), out).expect("the shape of the product");
    general_mat_mul(1.0, a, b, 0.0, &mut out);
}

/// The parts of a buffer of `width` values a row that belong to each group.
fn split<'a>(buffer: &'a mut [f32], groups: &[Group], width: usize) -> Vec<&'a mut [f32]> {
    let mut rest = buffer;
    let part = |group: &Group| rest.split_off_mut(..group.range.len() * width).expect("groups follow each other");
    groups.iter().map(part).collect()
}

/// `silu(gate) ⊙ up` of one row of gate and up.
fn activate(projected: &[f32]) -> impl Iterator<Item = f32> {
    let (gate, up) = projected.split_at(projected.len() / 2);
    gate.iter().zip(up).map(|(gate, up)| gate * sigmoid(*gate) * up)
}

/// Gradient of one row of gate and up, given that of [`activate`]: with `s = sigmoid(gate)`,
/// `d up s (1 + gate (1 - s))` and `d gate s`.
fn activate_back(projected: &[f32], d: &[f32]) -> impl Iterator<Item = f32> {
    let (gate, up) = projected.split_at(projected.len() / 2);
    let both = move || gate.iter().zip(up).zip(d).map(|((gate, up), d)| (*gate, *up, *d, sigmoid(*gate)));
    let d_gate = both().map(|(gate, up, d, s)| d * up * s * (1.0 + gate * (1.0 - s)));
    d_gate.chain(both().map(|(gate, _, d, s)| d * gate * s))
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
