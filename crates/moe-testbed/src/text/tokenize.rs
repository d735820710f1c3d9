//! Byte-level BPE: training, and the token streams of a corpus.

use std::path::Path;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

use super::corpus::Corpus;
use crate::error::{Result, TestbedError, check};

/// The token in front of a document; its id is 0 in a tokenizer from [`train_tokenizer`].
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// 256 bytes and [`END_OF_TEXT`].
const MIN_VOCABULARY: usize = 257;
/// Above this, `u16`-sized files and embeddings of small models stop making sense.
const MAX_VOCABULARY: usize = 1 << 16;

/// A corpus as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizedCorpus {
    /// Id of [`END_OF_TEXT`].
    pub end_of_text: u32,
    /// The domains in the corpus' order.
    pub domains: Vec<TokenizedDomain>,
}

/// A domain as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizedDomain {
    /// Name of the domain.
    pub name: String,
    /// All training documents, one after the other, each behind an [`END_OF_TEXT`].
    pub training: Vec<u32>,
    /// The held-out documents.
    pub held_out: Vec<TokenizedDocument>,
}

/// A document as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizedDocument {
    /// Tokens of the document, without [`END_OF_TEXT`].
    pub tokens: Vec<u32>,
    /// Bytes of its text.
    pub bytes: usize,
}

/// Trains a byte-level BPE of `vocabulary` tokens on the training part of a corpus.
///
/// Every byte is a token, so every text can be encoded and decodes to the same bytes.
///
/// # Errors
/// [`TestbedError::Option`] if `vocabulary` is not in 257..=65536, or is more than the corpus yields.
pub fn train_tokenizer(corpus: &Corpus, vocabulary: usize) -> Result<Tokenizer> {
    let range = MIN_VOCABULARY..=MAX_VOCABULARY;
    check("vocabulary", vocabulary, range.contains(&vocabulary), format!("{range:?}"))?;
    let byte_level = ByteLevel::new(false, false, true);
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocabulary)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .build();
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(byte_level))
        .with_post_processor(Some(byte_level))
        .with_decoder(Some(byte_level))
        .build()
        .map_err(TestbedError::Tokenizer)?;
    tokenizer.train(&mut trainer, corpus.training()).map_err(TestbedError::Tokenizer)?;
    let found = tokenizer.get_vocab_size(true);
    check("vocabulary", vocabulary, found == vocabulary, format!("at most {found}, the corpus has no more pairs"))?;
    tokenizer.to_string(false).and_then(|json| json.parse()).map_err(TestbedError::Tokenizer)
}

/// Reads the `tokenizer.json` of a model; whole documents are encoded, whatever it says of truncation and padding.
///
/// # Errors
/// [`TestbedError::Tokenizer`] if the file cannot be read or is not a tokenizer.
pub fn read_tokenizer(path: &Path) -> Result<Tokenizer> {
    let mut tokenizer = Tokenizer::from_file(path).map_err(TestbedError::Tokenizer)?;
    tokenizer.with_truncation(None).map_err(TestbedError::Tokenizer)?.with_padding(None);
    Ok(tokenizer)
}

impl TokenizedCorpus {
    /// Encodes a corpus.
    ///
    /// # Errors
    /// [`TestbedError::NoEndOfText`] if the tokenizer lacks [`END_OF_TEXT`]; [`TestbedError::Tokenizer`] if a document
    /// cannot be encoded.
    pub fn encode(corpus: &Corpus, tokenizer: &Tokenizer) -> Result<TokenizedCorpus> {
        let end_of_text = tokenizer.token_to_id(END_OF_TEXT).ok_or(TestbedError::NoEndOfText)?;
        let encode = |documents: &[String]| -> Result<Vec<TokenizedDocument>> {
            let texts = documents.iter().map(String::as_str).collect();
            let encodings = tokenizer.encode_batch_fast(texts, false).map_err(TestbedError::Tokenizer)?;
            let pairs = encodings.iter().zip(documents);
            Ok(pairs.map(|(e, text)| TokenizedDocument { tokens: e.get_ids().to_vec(), bytes: text.len() }).collect())
        };
        let domains = corpus.domains.iter().map(|domain| {
            let mut training = Vec::new();
            for document in encode(&domain.training)? {
                training.push(end_of_text);
                training.extend(document.tokens);
            }
            Ok(TokenizedDomain { name: domain.name.clone(), training, held_out: encode(&domain.held_out)? })
        });
        Ok(TokenizedCorpus { domains: domains.collect::<Result<_>>()?, end_of_text })
    }

    /// Cuts the training text of every domain to as many tokens as the smallest one has, which must be at least the share
    /// `least` of the largest.
    ///
    /// # Errors
    /// [`TestbedError::Unbalanced`] names the smallest domain; [`TestbedError::Option`] for a share that is none.
    pub fn balance(&mut self, least: f64) -> Result<()> {
        check("data.balance_within", least, (0.0..=1.0).contains(&least), "0 to 1")?;
        let tokens = |domain: &&TokenizedDomain| domain.training.len();
        let Some(smallest) = self.domains.iter().min_by_key(tokens) else { return Ok(()) };
        let largest = self.domains.iter().map(|domain| domain.training.len()).max().unwrap_or_default();
        let tokens = smallest.training.len();
        if (tokens as f64) < least * largest as f64 {
            return Err(TestbedError::Unbalanced { domain: smallest.name.clone(), tokens, largest, least });
        }
        self.domains.iter_mut().for_each(|domain| domain.training.truncate(tokens));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::corpus::Domain;

    fn corpus() -> Corpus {
        let numbers = |n: usize| format!("{n} plus {} is {}. twice {n} is {}.\n", n + 1, 2 * n + 1, 2 * n).repeat(3);
        let code = |n: usize| format!("def f{n}(x):\n    y = x + {n}\n    return y\n\n").repeat(3);
        let domain = |name: &str, text: &dyn Fn(usize) -> String| Domain {
            name: name.to_owned(),
            training: (0..40).map(text).collect(),
            held_out: (40..44).map(text).collect(),
        };
        Corpus { domains: vec![domain("code", &code), domain("numbers", &numbers)] }
    }

    #[test]
    fn tokens_decode_to_the_same_bytes() {
        let tokenizer = train_tokenizer(&corpus(), 300).unwrap();
        assert_eq!(tokenizer.token_to_id(END_OF_TEXT), Some(0));
        for text in ["  def f(x):\n\treturn x\n\n", "жизнь – Übung 数 \u{7f}\0", "  "] {
            let encoding = tokenizer.encode_fast(text, false).unwrap();
            assert_eq!(tokenizer.decode(encoding.get_ids(), false).unwrap(), text);
        }
    }

    #[test]
    fn training_is_deterministic() {
        let json = || train_tokenizer(&corpus(), 320).unwrap().to_string(true).unwrap();
        assert_eq!(json(), json());
    }

    #[test]
    fn streams_hold_every_document_behind_an_end_of_text() {
        let corpus = corpus();
        let tokenizer = train_tokenizer(&corpus, 280).unwrap();
        let tokens = TokenizedCorpus::encode(&corpus, &tokenizer).unwrap();
        for (domain, encoded) in corpus.domains.iter().zip(&tokens.domains) {
            assert_eq!(tokenizer.decode(&encoded.training, true).unwrap(), domain.training.concat());
            let ends = encoded.training.iter().filter(|&&token| token == 0).count();
            assert_eq!(ends, domain.training.len());
            let bytes: usize = encoded.held_out.iter().map(|document| document.bytes).sum();
            assert_eq!(bytes, domain.held_out.concat().len());
        }
    }

    #[test]
    fn domains_are_cut_to_the_smallest_unless_it_is_too_small() {
        let corpus = corpus();
        let tokenizer = train_tokenizer(&corpus, 257).unwrap();
        let mut tokens = TokenizedCorpus::encode(&corpus, &tokenizer).unwrap();
        let sizes = |tokens: &TokenizedCorpus| tokens.domains.iter().map(|d| d.training.len()).collect::<Vec<_>>();
        let before = sizes(&tokens);
        let message = tokens.balance(1.0).unwrap_err().to_string();
        let (smallest, largest) = (before.iter().min().unwrap(), before.iter().max().unwrap());
        assert_eq!(
            message,
            format!("domain numbers: {smallest} training tokens, fewer than 1 of the largest domain's {largest}")
        );
        tokens.balance(0.5).unwrap();
        assert_eq!(sizes(&tokens), [*smallest; 2]);
        assert_eq!(tokens.balance(2.0).unwrap_err().to_string(), "data.balance_within is 2, allowed are 0 to 1");
    }

    #[test]
    fn tokenizers_without_an_end_of_text_and_other_files_are_errors() {
        let mut bare = tokenizers::Tokenizer::new(BPE::default());
        bare.with_pre_tokenizer(Some(ByteLevel::default()));
        let error = TokenizedCorpus::encode(&corpus(), &bare).unwrap_err().to_string();
        assert_eq!(error, "the tokenizer has no token <|endoftext|>");
        assert!(matches!(read_tokenizer(Path::new("/nowhere")), Err(TestbedError::Tokenizer(_))));
    }

    #[test]
    fn vocabularies_out_of_range_are_errors() {
        let message = |size| train_tokenizer(&corpus(), size).unwrap_err().to_string();
        assert_eq!(message(256), "vocabulary is 256, allowed are 257..=65536");
        assert!(message(60_000).starts_with("vocabulary is 60000, allowed are at most "));
    }
}
