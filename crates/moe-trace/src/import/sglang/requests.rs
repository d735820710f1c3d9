//! Which request each token of a pass belongs to.

use std::ops::Range;

use super::records::{Mode, Pass};
use crate::Phase;

/// A token of a request.
pub(super) struct Token {
    /// Experts, `[layers of the model x width]`.
    pub(super) row: Vec<u16>,
    pub(super) phase: Phase,
    pub(super) id: Option<u32>,
}

/// A request that is being put together; its tokens have positions without a gap.
pub(super) struct Request {
    pub(super) tokens: Vec<Token>,
    /// Position of its first token.
    start: i64,
    /// Position of the first token that its last pass computed.
    part: i64,
    /// Whether its last pass computed guesses, of which only the first is certain.
    guessed: bool,
    decoded: bool,
    ended: bool,
}

impl Request {
    /// Position of its next token, if all tokens so far count.
    fn next(&self) -> i64 {
        self.start.saturating_add(i64::try_from(self.tokens.len()).unwrap_or(i64::MAX))
    }

    /// Whether a pass may go on with the token at `first`.
    fn accepts(&self, first: i64) -> bool {
        !self.ended && if self.guessed { self.part < first && first <= self.next() } else { first == self.next() }
    }

    /// Forgets the tokens from a position on; returns how many there were.
    fn forget(&mut self, from: i64) -> usize {
        let kept = usize::try_from(from.saturating_sub(self.start)).unwrap_or(0).min(self.tokens.len());
        let forgotten = self.tokens.len() - kept;
        self.tokens.truncate(kept);
        forgotten
    }
}

/// Tokens of a pass that belong to one request.
pub(super) struct Part {
    pub(super) tokens: Range<usize>,
    pub(super) request: usize,
    pub(super) phase: Phase,
}

/// What was understood on the way, for the report.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Guesses that a later pass replaced.
    pub(super) rejected: usize,
    /// Guesses of a request's last pass, of which no later pass says whether they were accepted.
    pub(super) uncertain: usize,
    /// Parts that could have continued several requests, of which not all were continued.
    pub(super) ambiguous: usize,
    /// Requests whose first tokens are not in the file.
    pub(super) without_start: usize,
    /// Tokens that stand alone in a pass of mode mixed.
    pub(super) mixed: usize,
}

/// All requests of a file, in the order in which they begin.
pub(super) struct Requests {
    open: Vec<Request>,
    /// The number of guesses per request divides this.
    guesses: usize,
    /// The number of guesses per request, once a pass has shown it.
    known_guesses: Option<usize>,
    pub(super) counts: Counts,
}

impl Requests {
    /// Creates an empty set of requests, whose tokens all `passes` have.
    pub(super) fn new(passes: &[Pass]) -> Requests {
        let verify = passes.iter().filter(|pass| pass.mode == Mode::Verify);
        let guesses = verify.flat_map(|pass| runs(&pass.positions)).fold(0, |all, run| gcd(all, run.len()));
        Requests { open: Vec::new(), guesses, known_guesses: None, counts: Counts::default() }
    }

    /// Finds the request of each token of a pass; `None` if guesses cannot be told apart by request.
    ///
    /// The caller adds the tokens to their requests before the next pass.
    pub(super) fn assign(&mut self, pass: &Pass) -> Option<Vec<Part>> {
        let parts = match pass.mode {
            Mode::Verify => self.verify(&pass.positions)?,
            _ => self.continue_oldest(pass),
        };
        let mut continued = vec![false; self.open.len()];
        for part in &parts {
            let request = &mut self.open[part.request];
            let first = pass.positions[part.tokens.start];
            self.counts.rejected += request.forget(first);
            request.part = first;
            request.guessed = pass.mode == Mode::Verify;
            request.decoded |= part.phase == Phase::Decode;
            continued[part.request] = true;
        }
        if matches!(pass.mode, Mode::Decode | Mode::Verify) {
            for (request, continued) in self.open.iter_mut().zip(continued) {
                request.ended |= request.decoded && !continued;
            }
        }
        Some(parts)
    }

    /// Adds a token to a request.
    pub(super) fn push(&mut self, request: usize, token: Token) {
        self.open[request].tokens.push(token);
    }

    /// The requests. Of guesses in a request's last pass only the first token is kept, which is no guess.
    pub(super) fn finish(mut self) -> (Vec<Request>, Counts) {
        for request in self.open.iter_mut().filter(|request| request.guessed) {
            let certain = request.part.saturating_add(1);
            self.counts.uncertain += request.forget(certain);
        }
        (self.open, self.counts)
    }

    /// Every part continues the oldest request that has come as far, or begins one.
    fn continue_oldest(&mut self, pass: &Pass) -> Vec<Part> {
        let mut taken = vec![false; self.open.len()];
        let mut parts = Vec::new();
        let mut unclear = Vec::new();
        for tokens in split(pass) {
            let first = pass.positions[tokens.start];
            let mut fitting = (0..taken.len()).filter(|&index| !taken[index] && self.open[index].accepts(first));
            let oldest = if first == 0 { None } else { fitting.next() };
            unclear.extend(oldest.and(fitting.next()));
            let request = oldest.unwrap_or_else(|| {
                self.counts.without_start += usize::from(first != 0);
                let tokens = Vec::new();
                self.open.push(Request {
                    tokens,
                    start: first,
                    part: first,
                    guessed: false,
                    decoded: false,
                    ended: false,
                });
                self.open.len() - 1
            });
            if let Some(taken) = taken.get_mut(request) {
                *taken = true;
            }
            let alone = pass.mode == Mode::Mixed && tokens.len() == 1 && oldest.is_some();
            self.counts.mixed += usize::from(alone);
            let phase = if alone || pass.mode == Mode::Decode { Phase::Decode } else { Phase::Prefill };
            parts.push(Part { tokens, request, phase });
        }
        self.counts.ambiguous += unclear.into_iter().filter(|&other| !taken[other]).count();
        parts
    }

    /// Guesses: as many for every request, and requests in the order in which they began.
    fn verify(&mut self, positions: &[i64]) -> Option<Vec<Part>> {
        let fits = |size: usize| self.chains(positions, size);
        if let Some(parts) = self.known_guesses.and_then(fits) {
            return Some(parts);
        }
        let sizes = (1..=self.guesses).filter(|size| self.guesses.is_multiple_of(*size));
        let mut fitting = sizes.filter_map(|size| Some((size, fits(size)?)));
        match (fitting.next(), fitting.next()) {
            (Some((size, parts)), None) => {
                self.known_guesses = Some(size);
                Some(parts)
            }
            _ => None,
        }
    }

    /// Parts of `size` tokens each, if every part counts up and continues a request.
    fn chains(&self, positions: &[i64], size: usize) -> Option<Vec<Part>> {
        if !positions.len().is_multiple_of(size) {
            return None;
        }
        let mut requests = 0..self.open.len();
        let part = |(number, chain): (usize, &[i64])| {
            if runs(chain).len() != 1 {
                return None;
            }
            let request = requests.find(|&request| self.open[request].accepts(chain[0]))?;
            Some(Part { tokens: number * size..(number + 1) * size, request, phase: Phase::Decode })
        };
        positions.chunks(size).enumerate().map(part).collect()
    }
}

/// The parts of a pass that belong to one request each: single tokens when decoding, else as the recorder says, else where
/// positions do not count up.
fn split(pass: &Pass) -> Vec<Range<usize>> {
    match &pass.parts {
        _ if pass.mode == Mode::Decode => (0..pass.positions.len()).map(|token| token..token + 1).collect(),
        Some(parts) => {
            let mut start = 0;
            let ranges = parts.iter().map(|&part| {
                let range = start..start + part;
                start = range.end;
                range
            });
            ranges.filter(|range| !range.is_empty()).collect()
        }
        None => runs(&pass.positions),
    }
}

/// Runs of positions that count up.
fn runs(positions: &[i64]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for token in 0..positions.len() {
        match runs.last_mut() {
            Some(last) if positions[token - 1].checked_add(1) == Some(positions[token]) => last.end = token + 1,
            _ => runs.push(token..token + 1),
        }
    }
    runs
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
