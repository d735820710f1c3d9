//! Prompts from files.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use moe_model::Tokenizer;
use moescope_cli::Prompt;

/// Up to `count` prompts of `length` tokens from each file, evenly spread over it.
pub(crate) fn from_files(files: &[PathBuf], tokenizer: &Tokenizer, length: usize, count: usize) -> Result<Vec<Prompt>> {
    ensure!(length > 0, "--prompt-tokens is 0, give at least 1");
    ensure!(count > 0, "--prompts-per-file is 0, give at least 1");
    let mut prompts = Vec::new();
    for file in files {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {} as UTF-8 text", file.display()))?;
        let tokens = tokenizer.encode(&text)?;
        if tokens.is_empty() {
            bail!("{} has no text", file.display());
        }
        let pieces: Vec<&[u32]> = tokens.chunks(length).collect();
        let count = count.min(pieces.len());
        let domain = domain_name(file, files);
        for number in 0..count {
            let tokens = pieces[number * pieces.len() / count].to_vec();
            prompts.push(Prompt { domain: domain.clone(), tokens });
        }
    }
    Ok(prompts)
}

/// The file's name without its extension, or its path if another file has the same name.
fn domain_name(file: &Path, files: &[PathBuf]) -> String {
    let unique = files.iter().filter(|other| other.file_stem() == file.file_stem()).count() == 1;
    let name = file.file_stem().filter(|_| unique).unwrap_or(file.as_os_str());
    name.to_string_lossy().into_owned()
}
