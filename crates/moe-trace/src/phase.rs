//! Prefill and decode.

/// What the model was doing when it served a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Many tokens at once: a prompt, or text that is only read.
    Prefill,
    /// One token at a time: generation.
    Decode,
}

impl Phase {
    /// Both phases, in the order of their codes.
    pub const ALL: [Phase; 2] = [Phase::Prefill, Phase::Decode];

    /// The phase's code in a trace file: 0 for prefill, 1 for decode.
    pub fn code(self) -> u8 {
        match self {
            Phase::Prefill => 0,
            Phase::Decode => 1,
        }
    }

    /// The phase of a code, if there is one.
    pub fn from_code(code: u8) -> Option<Phase> {
        Phase::ALL.get(usize::from(code)).copied()
    }

    /// `"prefill"` or `"decode"`.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Prefill => "prefill",
            Phase::Decode => "decode",
        }
    }
}
