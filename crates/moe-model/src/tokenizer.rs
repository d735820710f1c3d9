//! Text to tokens and back.

use std::path::Path;

use crate::{ModelError, Result};

/// A tokenizer as `tokenizer.json` describes it.
///
/// ```
/// use moe_model::Tokenizer;
/// let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/olmoe-mha/tokenizer.json");
/// let tokenizer = Tokenizer::from_file(file)?;
/// assert_eq!(tokenizer.encode("w10 w95 w5")?, [10, 95, 5]);
/// assert_eq!(tokenizer.decode(&[10, 95, 5])?, "w10 w95 w5");
/// assert_eq!(tokenizer.vocab_size(), 96);
/// # Ok::<(), moe_model::ModelError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`; texts are encoded whole, whatever it says of truncation and padding.
    ///
    /// # Errors
    /// [`ModelError::TokenizerFile`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Tokenizer> {
        let path = path.as_ref();
        let failed = |source| ModelError::TokenizerFile { path: path.to_owned(), source };
        let mut inner = tokenizers::Tokenizer::from_file(path).map_err(failed)?;
        inner.with_truncation(None).map_err(failed)?.with_padding(None);
        Ok(Tokenizer { inner })
    }

    /// Tokens of a text, with the special tokens that the tokenizer puts around every text.
    ///
    /// # Errors
    /// [`ModelError::Tokenize`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, true).map_err(ModelError::Tokenize)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of tokens, special tokens left out.
    ///
    /// # Errors
    /// [`ModelError::Tokenize`].
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner.decode(tokens, true).map_err(ModelError::Tokenize)
    }

    /// Number of token ids, added tokens counted.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The largest token id.
    pub(crate) fn largest_id(&self) -> Option<u32> {
        self.inner.get_vocab(true).into_values().max()
    }
}
