//! Prompts of several domains, written for this project in the style of each domain.

use anyhow::Result;
use moe_model::Tokenizer;
use serde::Deserialize;

/// A text to continue.
pub struct Prompt {
    /// Name of the kind of text.
    pub domain: String,
    /// Tokens of the text.
    pub tokens: Vec<u32>,
}

#[derive(Deserialize)]
struct Text {
    domain: String,
    text: String,
}

/// Encodes the built-in prompts and cuts each to `room` tokens.
///
/// # Errors
/// If the tokenizer cannot encode a text.
pub fn built_in_prompts(tokenizer: &Tokenizer, room: usize) -> Result<Vec<Prompt>> {
    let texts: Vec<Text> = serde_json::from_str(include_str!("prompts.json"))?;
    let prompt = |Text { domain, text }| -> Result<Prompt> {
        let mut tokens = tokenizer.encode(&text)?;
        tokens.truncate(room);
        Ok(Prompt { domain, tokens })
    };
    texts.into_iter().map(prompt).collect()
}
