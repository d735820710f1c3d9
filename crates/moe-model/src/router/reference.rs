//! The router that is told the domain.

use candle_core::{D, Tensor};
use candle_nn::ops;

use crate::Result;
use crate::router::choice::{Choice, TopK};
use crate::router::kind::reference_experts;
use crate::router::strategy::{Strategy, TokenView};

/// A token takes the experts of its largest probabilities among those of its domain.
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    top_k: TopK,
    /// Experts of each domain, ascending, at least `top_k`.
    experts: Vec<Vec<u16>>,
}

impl Reference {
    pub(crate) fn new(top_k: TopK, domains: usize) -> Reference {
        let experts = u16::try_from(top_k.experts).expect("a geometry has at most u16::MAX experts");
        let sets = reference_experts(domains, experts).into_iter();
        Reference { top_k, experts: sets.map(|set| set.into_iter().map(|expert| expert.0).collect()).collect() }
    }
}

impl Strategy for Reference {
    fn choose(&self, logits: &[f32], tokens: &TokenView<'_>) -> Result<Choice> {
        let mut choice = Choice::with_room(tokens.domains.len(), self.top_k.top_k);
        let (mut row_of, mut ranked) = (Vec::new(), Vec::new());
        for (row, domain) in logits.chunks_exact(self.top_k.experts).zip(tokens.domains) {
            let experts = &self.experts[domain.index()];
            row_of.clear();
            row_of.extend(experts.iter().map(|&expert| row[usize::from(expert)]));
            self.top_k.rank_softmax(&row_of, &mut ranked);
            choice.push(ranked.iter().map(|&(weight, place)| (experts[usize::from(place)], weight)));
        }
        Ok(choice)
    }

    fn scores(&self, logits: &Tensor, tokens: &TokenView<'_>) -> Result<Tensor> {
        let mut mask = vec![f32::NEG_INFINITY; logits.elem_count()];
        for (row, domain) in mask.chunks_exact_mut(self.top_k.experts).zip(tokens.domains) {
            self.experts[domain.index()].iter().for_each(|&expert| row[usize::from(expert)] = 0.0);
        }
        let mask = Tensor::from_vec(mask, logits.shape(), logits.device())?;
        Ok(ops::softmax(&(logits + mask)?, D::Minus1)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use moe_trace::DomainId;

    use super::*;

    #[test]
    fn a_token_sees_the_experts_of_its_domain_alone() {
        let logits = [9.0f32, 0.0, 2f32.ln(), 2f32.ln()];
        let logits = [logits, logits].concat();
        let domains = [DomainId(1), DomainId(0)];
        let tokens = TokenView { ids: &[0; 2], positions: &[0, 1], domains: &domains };
        let router = Reference::new(TopK { experts: 4, top_k: 1, normalise: false }, 2);
        let choice = router.choose(&logits, &tokens).unwrap();
        // Of equal weights the lowest id.
        assert_eq!(choice.experts, [2, 0]);
        assert!((choice.weights[0] - 0.5).abs() < 1e-6 && choice.weights[1] > 0.99, "{:?}", choice.weights);
        let tensor = Tensor::from_vec(logits, (2, 4), &Device::Cpu).unwrap();
        let scores = router.scores(&tensor, &tokens).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(scores[0], [0.0, 0.0, 0.5, 0.5]);
        assert_eq!((scores[1][0], scores[1][2], scores[1][3]), (choice.weights[1], 0.0, 0.0));
    }

    /// Outside of the domain nothing is chosen even where every weight inside but one vanishes.
    #[test]
    fn vanishing_weights_stay_in_the_domain() {
        let tokens = TokenView { ids: &[0], positions: &[0], domains: &[DomainId(1)] };
        let router = Reference::new(TopK { experts: 4, top_k: 2, normalise: true }, 2);
        assert_eq!(router.choose(&[0.0, 0.0, -500.0, 500.0], &tokens).unwrap().experts, [3, 2]);
    }
}
