//! How closely a bank must agree with one that holds every expert on the device.

use expert_cache::{MissPolicy, Oversize, PolicyKind};

use crate::error::{OffloadError, Result};

/// How closely outputs agree with those of [`ResidentExperts`](crate::ResidentExperts).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Exactness {
    /// Bit for bit, whatever capacity, policy, transfers, prefetcher and batch: an expert is only ever computed by the
    /// device's kernels. What would compute it elsewhere is refused when the bank is made, or, if a policy made by a
    /// closure declines a load, by the call.
    #[default]
    Strict,
    /// As close as the kernels of host and device agree: a missing expert may be computed on the host.
    /// [`Divergence`](crate::Divergence) tells by how much two runs differ.
    Tolerant,
}

impl Exactness {
    /// Whether experts may be computed in host memory; `alike` where the device computes as the host does, being the
    /// same.
    pub(super) fn allows_host(self, alike: bool) -> bool {
        self == Exactness::Tolerant || alike
    }

    /// Refuses choices that compute otherwise than the resident bank.
    pub(super) fn check(
        self,
        alike: bool,
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
        match on_host.filter(|_| !self.allows_host(alike)) {
            Some(choice) => Err(OffloadError::Inexact { choice }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_computes_is_exact_only_where_it_is_the_device() {
        let check = |exactness: Exactness, alike, oversize, misses: &MissPolicy, policy| {
            exactness.check(alike, oversize, misses, policy).map_err(|error| error.to_string())
        };
        let choices = [
            (Oversize::Bypass, MissPolicy::Load, None, "bypassing what does not fit"),
            (Oversize::Waves, MissPolicy::Load, Some(PolicyKind::BeladyBypass), "a policy that declines loads"),
            (Oversize::Waves, MissPolicy::Host, None, "serving misses on the host"),
        ];
        for (oversize, misses, policy, choice) in choices {
            assert_eq!(check(Exactness::Strict, true, oversize, &misses, policy), Ok(()));
            assert_eq!(check(Exactness::Tolerant, false, oversize, &misses, policy), Ok(()));
            let refusal = format!("{choice} is not exact on this device, Exactness::Tolerant allows it");
            assert_eq!(check(Exactness::Strict, false, oversize, &misses, policy), Err(refusal));
        }
        assert_eq!(check(Exactness::Strict, false, Oversize::Waves, &MissPolicy::Load, None), Ok(()));
    }
}
