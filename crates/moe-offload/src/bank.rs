//! The seam between an MoE block and the place where its experts live.

use candle_core::Tensor;
use moe_trace::LayerId;

use crate::error::Result;
use crate::routes::Routes;

/// Runs the experts of a model's MoE layers.
///
/// # Threads
/// Threads may share a bank. Use threads of your own, or those on which an async runtime lets calls block
/// (`tokio::task::spawn_blocking`): a call takes as long as its experts do. Workers of rayon compute the matrices of a call,
/// so one of them must not wait for the call of another. A bank whose calls take turns, such as
/// [`OffloadedExperts`](crate::OffloadedExperts), therefore returns
/// [`OffloadError::RayonWorker`](crate::OffloadError::RayonWorker) when a worker calls it while another call has the turn.
/// A lone caller on a worker, for example in `ThreadPool::install`, is served.
pub trait ExpertBank: Send + Sync {
    /// Sends the tokens `hidden`, `[tokens x hidden_size]`, through their experts; returns the weighted sum of the
    /// experts' outputs, `[tokens x hidden_size]`, summed in rank order.
    ///
    /// # Errors
    /// A route that the layer does not have, a tensor operation or a load that failed;
    /// [`NotFinite`](crate::OffloadError::NotFinite) for weights of NaN or infinity that a token meets on the CPU.
    fn forward(&self, layer: LayerId, hidden: &Tensor, routes: &Routes) -> Result<Tensor>;

    /// Tells the bank that a sequence has ended, for policies that remember sequences.
    ///
    /// # Errors
    /// What the bank's state allows no more.
    fn sequence_end(&self) -> Result<()> {
        Ok(())
    }
}
