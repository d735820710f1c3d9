//! The ways to choose experts that a model may be built with.

use std::fmt;

use moe_trace::ExpertId;
use serde::{Deserialize, Serialize};

/// How the routers of a model choose experts for tokens.
///
/// In files the names are `softmax`, `sigmoid`, `expert-choice`, `hash`, `random`, `reference` and `position`. Whether
/// the weights of a token's experts are raw scores or scaled to sum to 1 is
/// [`norm_topk_prob`](crate::OlmoeParams::norm_topk_prob); `hash` and `position` have no scores, their weights are
/// `1 / top_k` in either case.
///
/// ```
/// use moe_model::RouterKind;
/// assert_eq!(RouterKind::default(), RouterKind::Softmax);
/// assert_eq!(RouterKind::ExpertChoice.to_string(), "expert-choice");
/// assert_eq!(RouterKind::ALL.iter().filter(|kind| kind.is_trained()).count(), 4);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouterKind {
    /// The `top_k` largest of a softmax over all experts (Shazeer et al. 2017, arXiv 1701.06538; OLMoE).
    #[default]
    Softmax,
    /// The `top_k` largest of a sigmoid plus an expert's bias; the weights are the sigmoids without the bias (DeepSeek-V3,
    /// arXiv 2412.19437, section 2.1.2). Training moves the bias towards an even load, without a loss (arXiv
    /// 2408.15664).
    Sigmoid,
    /// In training every expert takes the `tokens * top_k / experts` tokens of a micro-batch that have the largest
    /// softmax for it (Zhou et al. 2022, arXiv 2202.09368), so a token has any number of experts. Which tokens an expert
    /// takes depends on later tokens and on other sequences; inference must see neither, so there, in prefill and
    /// decode alike, a token takes the `top_k` experts of its largest softmax.
    ExpertChoice,
    /// Experts drawn for each token id by a seeded hash (Roller et al. 2021, arXiv 2106.04426).
    Hash,
    /// As [`Softmax`](Self::Softmax), with router weights that stay as they were drawn (arXiv 2402.13089).
    Random,
    /// As [`Softmax`](Self::Softmax), over the experts of the token's domain alone, which are
    /// [given](reference_experts): the ideal routing of labelled text, as an upper bound (arXiv 2604.07030).
    Reference,
    /// Experts drawn for each position by a seeded hash: a null that knows nothing of the text.
    Position,
}

impl RouterKind {
    /// Every kind.
    pub const ALL: [RouterKind; 7] = [
        RouterKind::Softmax,
        RouterKind::Sigmoid,
        RouterKind::ExpertChoice,
        RouterKind::Hash,
        RouterKind::Random,
        RouterKind::Reference,
        RouterKind::Position,
    ];

    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            RouterKind::Softmax => "softmax",
            RouterKind::Sigmoid => "sigmoid",
            RouterKind::ExpertChoice => "expert-choice",
            RouterKind::Hash => "hash",
            RouterKind::Random => "random",
            RouterKind::Reference => "reference",
            RouterKind::Position => "position",
        }
    }

    /// Whether the router computes logits from a token's hidden state.
    pub fn has_logits(self) -> bool {
        !matches!(self, RouterKind::Hash | RouterKind::Position)
    }

    /// Whether training changes the router's weights.
    pub fn is_trained(self) -> bool {
        self.has_logits() && self != RouterKind::Random
    }
}

impl fmt::Display for RouterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The experts of each domain under the [reference router](RouterKind::Reference): consecutive ids, no expert in two
/// domains, every expert in one, and the sizes differ by at most one.
///
/// ```
/// use moe_model::reference_experts;
/// use moe_trace::ExpertId;
/// let experts = reference_experts(2, 5);
/// assert_eq!(experts, [vec![ExpertId(0), ExpertId(1)], vec![ExpertId(2), ExpertId(3), ExpertId(4)]]);
/// ```
pub fn reference_experts(domains: usize, experts: u16) -> Vec<Vec<ExpertId>> {
    let first = |domain: usize| domain * usize::from(experts) / domains;
    let ids = |from: usize, to: usize| (0..experts).skip(from).take(to - from).map(ExpertId).collect();
    (0..domains).map(|domain| ids(first(domain), first(domain + 1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_files() {
        for kind in RouterKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            assert_eq!(serde_json::from_value::<RouterKind>(kind.name().into()).unwrap(), kind);
        }
        assert!(serde_json::from_str::<RouterKind>("\"top-p\"").is_err());
    }

    #[test]
    fn every_expert_belongs_to_one_domain() {
        for (domains, experts) in [(1, 1), (3, 8), (8, 8), (8, 64), (5, 17)] {
            let of_domain = reference_experts(domains, experts);
            let sizes: Vec<usize> = of_domain.iter().map(Vec::len).collect();
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
            assert!(of_domain.concat().into_iter().eq((0..experts).map(ExpertId)));
        }
        assert!(reference_experts(0, 4).is_empty());
    }
}
