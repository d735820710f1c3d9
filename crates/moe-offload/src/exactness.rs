//! How closely a bank must agree with one that holds every expert on the device.

use candle_core::Device;
use expert_cache::{MissPolicy, Oversize, PolicyKind};

use crate::{OffloadError, Result};

/// How closely outputs agree with those of [`ResidentExperts`](crate::ResidentExperts).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Exactness {
    /// Bit for bit, whatever capacity, policy, transfers, prefetcher and batch: an expert is only ever computed by the
    /// device's kernels. What would compute it elsewhere is refused when the bank is made, or, if a policy made by a
    /// closure declines a load, by the call.
    #[default]
    Strict,
    /// As close as the kernels of host and device agree: a missing expert may be computed on the host.
    Tolerant,
}

impl Exactness {
    /// Whether experts may be computed in host memory.
    pub(crate) fn allows_host(self, device: &Device) -> bool {
        self == Exactness::Tolerant || device.is_cpu()
    }

    /// Refuses choices that compute otherwise than the resident bank.
    pub(crate) fn check(
        self,
        device: &Device,
        oversize: Oversize,
        misses: &MissPolicy,
        bypassing: Option<PolicyKind>,
    ) -> Result<()> {
        let on_host = match misses {
            MissPolicy::Skip { .. } => return Err(OffloadError::WhatIf { misses: "skipping experts" }),
            MissPolicy::Substitute { .. } => return Err(OffloadError::WhatIf { misses: "substituting experts" }),
            MissPolicy::Load if oversize == Oversize::Bypass => Some("bypassing what does not fit"),
            MissPolicy::Load => bypassing.map(|_| "a policy that declines loads"),
            MissPolicy::Host => Some("serving misses on the host"),
            MissPolicy::Cheaper(_) => Some("serving misses where it is cheaper"),
        };
        match on_host.filter(|_| !self.allows_host(device)) {
            Some(choice) => Err(OffloadError::Inexact { choice }),
            None => Ok(()),
        }
    }
}
