//! The text of tokens.

use crate::columns::Text;

/// The bytes of each token of a sequence.
///
/// They are bytes and not strings because a token of a byte-level vocabulary may be a part of a character; the bytes of
/// all tokens together are UTF-8 where the text is.
///
/// ```
/// use moe_trace::TokenText;
/// let text: TokenText = ["Mo", "E"].into_iter().collect();
/// assert_eq!((text.len(), text.get(1)), (2, Some(&b"E"[..])));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenText {
    bytes: Vec<u8>,
    /// `[tokens + 1]`, starts with 0.
    offsets: Vec<i64>,
}

impl Default for TokenText {
    fn default() -> TokenText {
        TokenText { bytes: Vec::new(), offsets: vec![0] }
    }
}

impl TokenText {
    /// Appends a token.
    pub fn push(&mut self, token: impl AsRef<[u8]>) {
        self.bytes.extend_from_slice(token.as_ref());
        self.offsets.push(i64::try_from(self.bytes.len()).expect("a Vec holds at most isize::MAX bytes"));
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a token, if there is such a token.
    pub fn get(&self, token: usize) -> Option<&[u8]> {
        (token < self.len()).then(|| self.column().get(token))
    }

    /// The bytes of all tokens together.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Appends the tokens of another text.
    pub(crate) fn append(&mut self, other: &TokenText) {
        let end = self.offsets[self.offsets.len() - 1];
        self.bytes.extend_from_slice(&other.bytes);
        self.offsets.extend(other.offsets[1..].iter().map(|offset| end + offset));
    }

    /// Where tokens begin and end in [`bytes`](Self::bytes), `[tokens + 1]`.
    pub(crate) fn offsets(&self) -> &[i64] {
        &self.offsets
    }

    pub(crate) fn column(&self) -> Text<'_> {
        Text { bytes: &self.bytes, offsets: &self.offsets }
    }
}

impl<T: AsRef<[u8]>> FromIterator<T> for TokenText {
    fn from_iter<I: IntoIterator<Item = T>>(tokens: I) -> TokenText {
        let mut text = TokenText::default();
        tokens.into_iter().for_each(|token| text.push(token));
        text
    }
}

impl<T: AsRef<[u8]>> Extend<T> for TokenText {
    fn extend<I: IntoIterator<Item = T>>(&mut self, tokens: I) {
        tokens.into_iter().for_each(|token| self.push(token));
    }
}
