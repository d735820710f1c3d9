//! The text of an experiment, ready to train on.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use super::{
    corpus::Corpus,
    synthetic_mix::SyntheticMix,
    tokenize::{TokenizedCorpus, train_tokenizer},
};
use crate::error::{Result, TestbedError};

/// Where the text of an experiment comes from; without a source it is the default [`SyntheticMix`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataOptions {
    /// Tokens of the byte-level BPE; 257 makes a token of every byte.
    pub vocabulary: usize,
    /// Tokens that the smallest domain must have, as a share of the largest one's; all are cut to the smallest.
    pub balance_within: f64,
    /// Made-up domains.
    pub synthetic: Option<SyntheticMix>,
    /// Domains in folders.
    pub folders: Option<FolderMix>,
}

/// Domains in folders, one each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FolderMix {
    /// The folder with one sub-folder a domain; a relative path starts at the folder of the experiment's file.
    pub path: PathBuf,
    /// Share of the bytes of each domain that is held out.
    #[serde(default = "tenth")]
    pub held_out: f64,
    /// Seed of the split.
    #[serde(default)]
    pub seed: u64,
}

fn tenth() -> f64 {
    0.1
}

/// Balanced text as tokens.
#[derive(Debug)]
pub struct Prepared {
    /// The tokenizer, trained on the training text.
    pub tokenizer: Tokenizer,
    /// The tokens, as many of every domain in training.
    pub tokens: TokenizedCorpus,
}

impl Default for DataOptions {
    fn default() -> DataOptions {
        DataOptions { vocabulary: 1024, balance_within: 0.5, synthetic: None, folders: None }
    }
}

impl DataOptions {
    /// Reads or makes the text, trains the tokenizer and balances the domains. `folder` is that of the experiment's file.
    ///
    /// # Errors
    /// [`TestbedError::Option`] for two sources, as [`Corpus::read`], [`SyntheticMix::corpus`], [`train_tokenizer`] and
    /// [`TokenizedCorpus::balance`].
    pub fn prepare(&self, folder: &Path) -> Result<Prepared> {
        let corpus = match (&self.synthetic, &self.folders) {
            (Some(_), Some(_)) => {
                let (value, allowed) = ("synthetic and folders".to_owned(), "one of them".to_owned());
                return Err(TestbedError::Option { option: "data", value, allowed });
            }
            (None, Some(mix)) => Corpus::read(&folder.join(&mix.path), mix.held_out, mix.seed)?,
            (Some(mix), None) => mix.corpus()?,
            (None, None) => SyntheticMix::default().corpus()?,
        };
        let tokenizer = train_tokenizer(&corpus, self.vocabulary)?;
        let mut tokens = TokenizedCorpus::encode(&corpus, &tokenizer)?;
        tokens.balance(self.balance_within)?;
        Ok(Prepared { tokenizer, tokens })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(data: &DataOptions, folder: &Path) -> String {
        data.prepare(folder).unwrap_err().to_string()
    }

    #[test]
    fn folders_are_found_beside_the_file_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let mix = FolderMix { path: "corpus".into(), held_out: 0.2, seed: 1 };
        let data = DataOptions { vocabulary: 257, folders: Some(mix), ..DataOptions::default() };
        assert!(message(&data, folder.path()).ends_with("corpus: cannot read or write"));
        for (domain, lines) in [("a", 90), ("b", 100), ("c", 10)] {
            let path = folder.path().join("corpus").join(domain);
            std::fs::create_dir_all(&path).unwrap();
            for file in 0..5 {
                std::fs::write(path.join(file.to_string()), format!("{domain} line\n").repeat(lines)).unwrap();
            }
        }
        let text = message(&data, folder.path());
        // One of five files is held out; a line has 7 bytes, a document an end-of-text token.
        assert_eq!(text, "domain c: 284 training tokens, fewer than 0.5 of the largest domain's 2804");
        std::fs::remove_dir_all(folder.path().join("corpus/c")).unwrap();
        let prepared = data.prepare(folder.path()).unwrap();
        let sizes: Vec<usize> = prepared.tokens.domains.iter().map(|domain| domain.training.len()).collect();
        assert_eq!(sizes, [4 * (90 * 7 + 1); 2]);
        let both = DataOptions { synthetic: Some(SyntheticMix::default()), ..data };
        assert_eq!(message(&both, folder.path()), "data is synthetic and folders, allowed are one of them");
    }
}
