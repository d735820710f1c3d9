//! Operations of one pass over the data that gradients flow through, for f32 on the CPU.
//!
//! candle's own fused operations have no backward pass, and each operation of the composed forms costs several passes
//! over memory when gradients are accumulated. The composed forms in `kernels` are their naive twins.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::kernels::{CausalMask, ExpBlock};

/// Rows that one task handles. Fixed, so that sums over rows do not depend on the number of threads.
const ROWS: usize = 64;

/// Numbers from which on threads share an operation: below, waking them takes longer.
const SHARED: usize = 1 << 14;

/// Whether the operations here take a tensor.
pub(crate) fn takes(x: &Tensor) -> bool {
    x.dtype() == DType::F32 && x.device().is_cpu()
}

/// The elements of a contiguous f32 tensor.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a fused operation needs a contiguous tensor"),
    }
}

/// Lends the elements of a contiguous f32 tensor on the CPU.
pub(crate) fn with_slice<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(slice(storage, layout)?)),
        _ => bail!("a fused operation needs a tensor on the CPU"),
    }
}

/// Calls `f` with each `len` numbers of `out` and those of `xs`.
fn for_each_part(out: &mut [f32], xs: &[f32], len: usize, f: impl Fn(&mut [f32], &[f32]) + Sync) {
    match out.len() < SHARED {
        true => out.chunks_mut(len).zip(xs.chunks(len)).for_each(|(out, xs)| f(out, xs)),
        false => out.par_chunks_mut(len).zip(xs.par_chunks(len)).for_each(|(out, xs)| f(out, xs)),
    }
}

fn storage(values: Vec<f32>, shape: &Shape) -> (CpuStorage, Shape) {
    (CpuStorage::F32(values), shape.clone())
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    // Eight sums side by side, so that the compiler can use vector registers.
    let mut sums = [0f32; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// `y = x / r ⊙ w` with `r = sqrt(mean(x²) + eps)` over the last dimension; arguments `x` and `w`.
pub(crate) struct RmsNorm {
    pub(crate) eps: f32,
}

impl RmsNorm {
    // Widths are below 2^24, which f32 holds.
    #[expect(clippy::cast_precision_loss)]
    fn inverse_root(&self, x: &[f32]) -> f32 {
        1.0 / (dot(x, x) / x.len() as f32 + self.eps).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let (xs, w) = (slice(x, lx)?, slice(w, lw)?);
        let width = w.len();
        let mut out = vec![0f32; xs.len()];
        for_each_part(&mut out, xs, ROWS * width, |out, xs| {
            for (out, x) in out.chunks_exact_mut(width).zip(xs.chunks_exact(width)) {
                let inverse = self.inverse_root(x);
                for ((out, x), w) in out.iter_mut().zip(x).zip(w) {
                    *out = x * inverse * w;
                }
            }
        });
        Ok(storage(out, lx.shape()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        // Rows of the gradient of x, then the gradient of w as one more row.
        let both = x.contiguous()?.apply_op3_no_bwd(w, &grad.contiguous()?, &RmsNormBackward { norm: self })?;
        let rows = both.dim(0)? - 1;
        Ok((Some(both.narrow(0, 0, rows)?.reshape(x.shape())?), Some(both.get(rows)?)))
    }
}

/// Gradients of [`RmsNorm`]; arguments `x`, `w` and the gradient `g` of `y`.
///
/// `dx = (g ⊙ w − x · mean(g ⊙ w ⊙ x) / r²) / r`, `dw = Σ g ⊙ x / r` over the rows.
struct RmsNormBackward<'a> {
    norm: &'a RmsNorm,
}

impl CustomOp3 for RmsNormBackward<'_> {
    fn name(&self) -> &'static str {
        "rms-norm-backward"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        g: &CpuStorage,
        lg: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (xs, w, gs) = (slice(x, lx)?, slice(w, lw)?, slice(g, lg)?);
        let (width, block) = (w.len(), ROWS * w.len());
        let rows = xs.len() / width;
        let mut out = vec![0f32; (rows + 1) * width];
        let (dx, dw) = out.split_at_mut(rows * width);
        let partial: Vec<Vec<f32>> = dx
            .par_chunks_mut(block)
            .zip(xs.par_chunks(block))
            .zip(gs.par_chunks(block))
            .map(|((dx, xs), gs)| {
                let mut dw = vec![0f32; width];
                let rows = dx.chunks_exact_mut(width).zip(xs.chunks_exact(width)).zip(gs.chunks_exact(width));
                for ((dx, x), g) in rows {
                    let inverse = self.norm.inverse_root(x);
                    for ((((dx, dw), x), g), w) in dx.iter_mut().zip(&mut dw).zip(x).zip(g).zip(w) {
                        *dx = g * w;
                        *dw += g * x * inverse;
                    }
                    #[expect(clippy::cast_precision_loss, reason = "widths are below 2^24, which f32 holds")]
                    let along = dot(dx, x) / width as f32 * inverse * inverse;
                    for (dx, x) in dx.iter_mut().zip(x) {
                        *dx = (*dx - x * along) * inverse;
                    }
                }
                dw
            })
            .collect();
        for partial in partial {
            dw.iter_mut().zip(partial).for_each(|(dw, partial)| *dw += partial);
        }
        Ok(storage(out, &Shape::from((rows + 1, width))))
    }
}

/// Rotates the pairs `(x[i], x[i + d/2])` of `x`, `[batch, heads, length, d]`, by angles `[length, d / 2]`.
pub(crate) struct Rotate {
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
    /// 1, or −1 to rotate back.
    pub(crate) sign: f32,
}

impl Rotate {
    fn rotate(&self, xs: &[f32], [length, width]: [usize; 2], cos: &[f32], sin: &[f32]) -> Vec<f32> {
        let (head, half) = (length * width, width / 2);
        let mut out = vec![0f32; xs.len()];
        for_each_part(&mut out, xs, head, |out, xs| {
            let rows = out.chunks_exact_mut(width).zip(xs.chunks_exact(width));
            for ((out, x), (cos, sin)) in rows.zip(cos.chunks_exact(half).zip(sin.chunks_exact(half))) {
                let ((out_a, out_b), (a, b)) = (out.split_at_mut(half), x.split_at(half));
                for ((((out_a, out_b), (a, b)), cos), sin) in
                    out_a.iter_mut().zip(out_b).zip(a.iter().zip(b)).zip(cos).zip(sin)
                {
                    let sin = self.sign * sin;
                    *out_a = a * cos - b * sin;
                    *out_b = a * sin + b * cos;
                }
            }
        });
        out
    }
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = slice(x, layout)?;
        let (_, _, length, width) = layout.shape().dims4()?;
        let rotated = |cos: &[f32], sin: &[f32]| self.rotate(xs, [length, width], cos, sin);
        let out = with_slice(&self.cos, |cos| with_slice(&self.sin, |sin| rotated(cos, sin)))??;
        Ok(storage(out, layout.shape()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let back = Rotate { cos: self.cos.clone(), sin: self.sin.clone(), sign: -self.sign };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}

/// `exp(scale · (x - largest))` of the first `seen` numbers of `x`, where `largest` is at least the greatest of them;
/// returns the largest and the sum.
fn exp_row(out: &mut [f32], x: &[f32], seen: usize, scale: f32, largest: f32) -> (f32, f32) {
    let largest = x[..seen].iter().copied().fold(largest, f32::max);
    for (out, x) in out[..seen].iter_mut().zip(x) {
        *out = (scale * (x - largest)).exp();
    }
    (largest, out[..seen].iter().sum())
}

/// The fused form of [`kernels::causal_exp`](crate::kernels::causal_exp), for inference.
pub(crate) fn causal_exp(x: &Tensor, scale: f32, mask: &CausalMask, largest: Option<&Tensor>) -> Result<ExpBlock> {
    let (batch, heads, queries, keys) = x.dims4()?;
    let shape = (batch, heads, queries, 1);
    let mut largest = match largest {
        Some(largest) => largest.flatten_all()?.to_vec1::<f32>()?,
        None => vec![f32::NEG_INFINITY; batch * heads * queries],
    };
    let (mut weights, mut sums) = (vec![0f32; x.elem_count()], vec![0f32; largest.len()]);
    with_slice(x, |xs| {
        let heads = weights.par_chunks_mut(queries * keys).zip(xs.par_chunks(queries * keys));
        let rows = largest.par_chunks_mut(queries).zip(sums.par_chunks_mut(queries));
        heads.zip(rows).for_each(|((weights, xs), (largest, sums))| {
            let rows = weights.chunks_exact_mut(keys).zip(xs.chunks_exact(keys));
            for (query, ((out, x), (largest, sum))) in rows.zip(largest.iter_mut().zip(sums)).enumerate() {
                (*largest, *sum) = exp_row(out, x, mask.seen(query), scale, *largest);
            }
        });
    })?;
    Ok(ExpBlock {
        weights: Tensor::from_vec(weights, x.shape(), x.device())?,
        largest: Tensor::from_vec(largest, shape, x.device())?,
        sums: Tensor::from_vec(sums, shape, x.device())?,
    })
}

/// `softmax(scale · x)` over the last dimension of `x`, `[.., queries, keys]`, and over the keys that the mask lets a
/// query see; the mask is the one of all keys.
pub(crate) struct CausalSoftmax {
    pub(crate) scale: f32,
    pub(crate) mask: CausalMask,
}

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        "causal-softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs = slice(x, layout)?;
        let (queries, keys) = last_dims(layout.shape());
        let mut out = vec![0f32; xs.len()];
        for_each_part(&mut out, xs, queries * keys, |out, xs| {
            for (query, (out, x)) in out.chunks_exact_mut(keys).zip(xs.chunks_exact(keys)).enumerate() {
                let seen = self.mask.seen(query);
                let (_, sum) = exp_row(out, x, seen, self.scale, f32::NEG_INFINITY);
                let inverse = 1.0 / sum;
                out[..seen].iter_mut().for_each(|out| *out *= inverse);
            }
        });
        Ok(storage(out, layout.shape()))
    }

    fn bwd(&self, _x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let backward = CausalSoftmaxBackward { scale: self.scale, mask: self.mask.clone() };
        Ok(Some(y.apply_op2_no_bwd(&grad.contiguous()?, &backward)?))
    }
}

/// Gradient of [`CausalSoftmax`]; arguments its result `y` and the gradient `g` of that.
///
/// `dx = scale · y ⊙ (g − Σ g ⊙ y)` over the last dimension.
struct CausalSoftmaxBackward {
    scale: f32,
    mask: CausalMask,
}

impl CustomOp2 for CausalSoftmaxBackward {
    fn name(&self) -> &'static str {
        "causal-softmax-backward"
    }

    fn cpu_fwd(&self, y: &CpuStorage, ly: &Layout, g: &CpuStorage, lg: &Layout) -> Result<(CpuStorage, Shape)> {
        let (ys, gs) = (slice(y, ly)?, slice(g, lg)?);
        let (queries, keys) = last_dims(ly.shape());
        let mut out = vec![0f32; ys.len()];
        let matrix = queries * keys;
        out.par_chunks_mut(matrix).zip(ys.par_chunks(matrix)).zip(gs.par_chunks(matrix)).for_each(|((out, ys), gs)| {
            let rows = out.chunks_exact_mut(keys).zip(ys.chunks_exact(keys)).zip(gs.chunks_exact(keys));
            for (query, ((out, y), g)) in rows.enumerate() {
                let seen = self.mask.seen(query);
                let along = dot(&y[..seen], &g[..seen]);
                for ((out, y), g) in out[..seen].iter_mut().zip(y).zip(g) {
                    *out = self.scale * y * (g - along);
                }
            }
        });
        Ok(storage(out, ly.shape()))
    }
}

fn last_dims(shape: &Shape) -> (usize, usize) {
    match *shape.dims() {
        [.., rows, columns] => (rows, columns),
        [columns] => (1, columns),
        [] => (1, 1),
    }
}
