//! Matrices of quantized blocks in host memory.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, GgmlType, k_quants};
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor};
use memmap2::Mmap;

#[cfg(target_arch = "x86_64")]
use super::block_dot::{WeightsQ4_0, WeightsQ8_0};
use super::block_matmul::{RowBlocks, matmul};
use super::weight_type::WeightType;
use crate::error::{OffloadError, Result};
use crate::memory::{HostArena, HostMemory, UncachedFile, room_for};

/// Calls a generic function with the block type that belongs to a [`GgmlDType`].
macro_rules! with_blocks {
    ($ggml:expr, $function:ident($($argument:expr),*)) => {
        match $ggml {
            GgmlDType::Q4_0 => $function::<k_quants::BlockQ4_0>($($argument),*),
            GgmlDType::Q4_1 => $function::<k_quants::BlockQ4_1>($($argument),*),
            GgmlDType::Q5_0 => $function::<k_quants::BlockQ5_0>($($argument),*),
            GgmlDType::Q5_1 => $function::<k_quants::BlockQ5_1>($($argument),*),
            GgmlDType::Q8_0 => $function::<k_quants::BlockQ8_0>($($argument),*),
            GgmlDType::Q2K => $function::<k_quants::BlockQ2K>($($argument),*),
            GgmlDType::Q3K => $function::<k_quants::BlockQ3K>($($argument),*),
            GgmlDType::Q4K => $function::<k_quants::BlockQ4K>($($argument),*),
            GgmlDType::Q5K => $function::<k_quants::BlockQ5K>($($argument),*),
            GgmlDType::Q6K => $function::<k_quants::BlockQ6K>($($argument),*),
            other => unreachable!("no weight type is {other:?}"),
        }
    };
}

/// Bytes from which on blocks are read where they stay: below, the pages around them would cost more memory than they save.
const DIRECT_BYTES: usize = 1 << 20;

/// A matrix `[rows, columns]` of quantized blocks in host memory: its own, or a part of a mapped file.
///
/// Tokens are multiplied with the blocks as they lie. candle's `QTensor` rearranges the weights when it first multiplies
/// them and keeps both forms, and it rounds tokens differently by their number; here a weight is held once, and a token's
/// output depends on no other token.
#[derive(Clone)]
pub struct BlockMatrix {
    weight_type: WeightType,
    ggml: GgmlDType,
    rows: usize,
    columns: usize,
    bytes: BlockBytes,
}

/// Where the blocks lie, aligned to 2 bytes.
#[derive(Clone)]
enum BlockBytes {
    Owned { memory: Arc<HostMemory>, range: Range<usize> },
    Mapped { map: Arc<Mmap>, range: Range<usize> },
}

impl BlockMatrix {
    /// A matrix of zeros in memory of its own.
    fn zeros(weight_type: WeightType, dims: (usize, usize)) -> Result<BlockMatrix> {
        block_type(weight_type, dims.1)?;
        BlockMatrix::zeros_in(&mut HostArena::new(BlockMatrix::room(weight_type, dims))?, weight_type, dims)
    }

    /// A matrix of zeros, with room to be [read](Self::read) to if it is large.
    pub(super) fn zeros_in(
        arena: &mut HostArena,
        weight_type: WeightType,
        (rows, columns): (usize, usize),
    ) -> Result<BlockMatrix> {
        let ggml = block_type(weight_type, columns)?;
        let memory = arena.take(memory_bytes(weight_type, (rows, columns)))?;
        let bytes = BlockBytes::Owned { memory: memory.into(), range: 0..weight_type.bytes(rows, columns) };
        Ok(BlockMatrix { weight_type, ggml, rows, columns, bytes })
    }

    /// Bytes of an arena that a matrix takes.
    pub(super) fn room(weight_type: WeightType, dims: (usize, usize)) -> usize {
        HostArena::room(memory_bytes(weight_type, dims))
    }

    /// Quantizes a matrix of f32 numbers in host memory.
    ///
    /// # Errors
    /// [`OffloadError::Blocks`] for rows that are not made of whole blocks; [`OffloadError::HostMemory`].
    pub fn quantize(numbers: &Tensor, weight_type: WeightType) -> Result<BlockMatrix> {
        fn of<T: GgmlType>(values: &[f32], bytes: &mut [u8]) {
            let mut quantized = vec![T::zeros(); values.len() / T::BLCK_SIZE];
            T::from_float(values, &mut quantized);
            bytes.copy_from_slice(bytes_of(&quantized));
        }
        let mut matrix = BlockMatrix::zeros(weight_type, numbers.dims2()?)?;
        let values = numbers.flatten_all()?.to_vec1::<f32>()?;
        let ggml = matrix.ggml;
        let bytes = matrix.bytes_mut().expect("made above");
        with_blocks!(ggml, of(&values, bytes));
        Ok(matrix)
    }

    /// Copies blocks, row by row.
    ///
    /// # Errors
    /// [`OffloadError::WeightTypeName`] for a type that has no blocks; [`OffloadError::Blocks`] for rows that are not made
    /// of whole ones; [`OffloadError::SlotBytes`] for another number of bytes; [`OffloadError::HostMemory`].
    pub fn new(weight_type: WeightType, dims: (usize, usize), bytes: &[u8]) -> Result<BlockMatrix> {
        let mut matrix = BlockMatrix::zeros(weight_type, dims)?;
        matrix.overwrite(bytes)?;
        Ok(matrix)
    }

    /// Borrows blocks from a mapped file, or copies them if they are not aligned there.
    pub(crate) fn mapped(
        weight_type: WeightType,
        dims: (usize, usize),
        map: &Arc<Mmap>,
        range: Range<usize>,
    ) -> Result<BlockMatrix> {
        let bytes = &map[range.clone()];
        let expected = weight_type.bytes(dims.0, dims.1);
        if bytes.len() != expected {
            return Err(OffloadError::SlotBytes { found: bytes.len(), expected });
        }
        if !bytes.as_ptr().addr().is_multiple_of(align_of::<u16>()) {
            return BlockMatrix::new(weight_type, dims, bytes);
        }
        let (ggml, (rows, columns)) = (block_type(weight_type, dims.1)?, dims);
        let bytes = BlockBytes::Mapped { map: Arc::clone(map), range };
        Ok(BlockMatrix { weight_type, ggml, rows, columns, bytes })
    }

    /// Rows and columns.
    pub fn dims(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Type of the blocks.
    pub fn weight_type(&self) -> WeightType {
        self.weight_type
    }

    /// The blocks, row by row.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            BlockBytes::Owned { memory, range } => &memory[range.clone()],
            BlockBytes::Mapped { map, range } => &map[range.clone()],
        }
    }

    /// Whether the blocks lie in a mapped file.
    pub fn is_mapped(&self) -> bool {
        matches!(self.bytes, BlockBytes::Mapped { .. })
    }

    /// Replaces the blocks, in the memory that is there unless a clone shares it.
    pub(super) fn overwrite(&mut self, from: &[u8]) -> Result<()> {
        let expected = self.weight_type.bytes(self.rows, self.columns);
        if from.len() != expected {
            return Err(OffloadError::SlotBytes { found: from.len(), expected });
        }
        if self.bytes_mut().is_none() {
            *self = BlockMatrix::zeros(self.weight_type, (self.rows, self.columns))?;
        }
        self.bytes_mut().expect("its own").copy_from_slice(from);
        Ok(())
    }

    /// Whether [`read`](Self::read) takes the blocks of a part of a file: it needs some pages of memory more, and blocks on
    /// even places.
    pub(crate) fn reads(&self, part: &Range<usize>) -> bool {
        part.len() >= DIRECT_BYTES && part.len() == self.bytes().len() && part.start.is_multiple_of(align_of::<u16>())
    }

    /// Replaces the blocks by those that [`reads`](Self::reads) allows, without a copy between; tells how the read went. They
    /// are undefined after an error.
    pub(crate) fn read(&mut self, file: &UncachedFile, part: &Range<usize>) -> Result<std::io::Result<()>> {
        let (len, room) = (part.len(), room_for(part.len()));
        let fits = match &mut self.bytes {
            BlockBytes::Owned { memory, .. } => memory.len() >= room && Arc::get_mut(memory).is_some(),
            BlockBytes::Mapped { .. } => false,
        };
        if !fits {
            self.bytes = BlockBytes::Owned { memory: HostMemory::zeros(room)?.into(), range: 0..len };
        }
        let BlockBytes::Owned { memory, range } = &mut self.bytes else { unreachable!("made above") };
        let start = file.read_to(Arc::get_mut(memory).expect("nobody shares it"), part);
        Ok(start.map(|start| *range = start..start + len))
    }

    /// The blocks, unless a clone shares them or they lie in a mapped file.
    fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        match &mut self.bytes {
            BlockBytes::Owned { memory, range } => Some(&mut Arc::get_mut(memory)?[range.clone()]),
            BlockBytes::Mapped { .. } => None,
        }
    }

    /// Multiplies tokens `[tokens, columns]`: `[tokens, rows]`, in the type of the tokens.
    ///
    /// # Errors
    /// Tokens of another width, or not on the CPU.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let wide = tokens.to_dtype(DType::F32)?.contiguous()?;
        Ok(wide.apply_op1_no_bwd(self)?.to_dtype(tokens.dtype())?)
    }

    /// The weights as numbers.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn dequantize(&self) -> Result<Tensor> {
        let mut values = vec![0f32; self.rows * self.columns];
        dequantize(self.ggml, self.bytes(), &mut values);
        Ok(Tensor::from_vec(values, (self.rows, self.columns), &candle_core::Device::Cpu)?)
    }
}

impl fmt::Debug for BlockMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockMatrix[{} x {}; {}]", self.rows, self.columns, self.weight_type)
    }
}

/// Bytes of memory for a matrix: a reallocation when it is first read to would leave holes behind that nothing fits in.
fn memory_bytes(weight_type: WeightType, (rows, columns): (usize, usize)) -> usize {
    let len = weight_type.bytes(rows, columns);
    if len >= DIRECT_BYTES { room_for(len) } else { len }
}

fn block_type(weights: WeightType, columns: usize) -> Result<GgmlDType> {
    let ggml =
        weights.ggml().ok_or_else(|| OffloadError::WeightTypeName { name: format!("{weights} without blocks") })?;
    let block = weights.block_weights();
    if columns == 0 || !columns.is_multiple_of(block) {
        return Err(OffloadError::Blocks { weights, columns, block });
    }
    Ok(ggml)
}

fn dequantize(ggml: GgmlDType, bytes: &[u8], values: &mut [f32]) {
    fn of<T: GgmlType>(bytes: &[u8], values: &mut [f32]) {
        T::to_float(blocks(bytes), values);
    }
    with_blocks!(ggml, of(bytes, values));
}

/// Blocks as which aligned bytes are read.
///
/// # Panics
/// If the bytes are not aligned, or no whole number of blocks.
#[expect(unsafe_code, reason = "candle's blocks are plain data without a safe cast")]
pub(super) fn blocks<T: GgmlType>(bytes: &[u8]) -> &[T] {
    assert!(bytes.as_ptr().addr().is_multiple_of(align_of::<T>()) && bytes.len().is_multiple_of(size_of::<T>()));
    // SAFETY: aligned and whole, checked above; every block type that is read or written as bytes is `repr(C)` of f16, u8 and i8,
    // for which every bit pattern is a value.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) }
}

/// The bytes of blocks.
#[expect(unsafe_code, reason = "candle's blocks are plain data without a safe cast")]
pub(super) fn bytes_of<T: GgmlType>(blocks: &[T]) -> &[u8] {
    // SAFETY: every block type that this module names is `repr(C)` of f16, u8 and i8 without padding, as the sizes of the
    // formats show.
    unsafe { std::slice::from_raw_parts(blocks.as_ptr().cast(), size_of_val(blocks)) }
}

/// Width, tokens and rows with a block of zeros at every end, which changes no sum, if candle would panic without: in debug
/// builds it asks rows of some types to have an even number of blocks, though it computes any.
fn even_rows<T: GgmlType>(columns: usize, tokens: &[f32], rows: &[T]) -> Option<(usize, Vec<f32>, Vec<T>)> {
    let asks = matches!(T::DTYPE, GgmlDType::Q4_1 | GgmlDType::Q5_0 | GgmlDType::Q5_1);
    let blocks = columns / T::BLCK_SIZE;
    if !cfg!(debug_assertions) || !asks || blocks.is_multiple_of(2) {
        return None;
    }
    let tokens = tokens.chunks_exact(columns).flat_map(|token| [token, &vec![0.0; T::BLCK_SIZE]].concat());
    let rows = rows.chunks_exact(blocks).flat_map(|row| row.iter().cloned().chain([T::zeros()]));
    Some((columns + T::BLCK_SIZE, tokens.collect(), rows.collect()))
}

impl CustomOp1 for BlockMatrix {
    fn name(&self) -> &'static str {
        "block_matmul"
    }

    fn cpu_fwd(&self, tokens: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        fn multiply<T: RowBlocks>(columns: usize, tokens: &[f32], bytes: &[u8]) -> Vec<f32> {
            match even_rows::<T>(columns, tokens, blocks(bytes)) {
                Some((columns, tokens, rows)) => matmul::<T>(columns, &tokens, &rows),
                None => matmul::<T>(columns, tokens, blocks(bytes)),
            }
        }
        let (m, k) = layout.shape().dims2()?;
        let Some((start, end)) = layout.contiguous_offsets() else { candle_core::bail!("tokens are not contiguous") };
        if k != self.columns {
            candle_core::bail!("tokens of width {k} meet rows of {}", self.columns);
        }
        let tokens = &tokens.as_slice::<f32>()?[start..end];
        let out = match self.ggml {
            #[cfg(target_arch = "x86_64")]
            GgmlDType::Q8_0 => multiply::<WeightsQ8_0>(k, tokens, self.bytes()),
            #[cfg(target_arch = "x86_64")]
            GgmlDType::Q4_0 => multiply::<WeightsQ4_0>(k, tokens, self.bytes()),
            ggml => with_blocks!(ggml, multiply(k, tokens, self.bytes())),
        };
        Ok((CpuStorage::F32(out), (m, self.rows).into()))
    }
}
