//! What the user knows and the file does not say.

/// What the user knows about a foreign file that the file itself does not say. Everything is optional: a format that says
/// it in the file checks it, one that does not takes the smallest value that fits the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// Experts a layer.
    pub experts: Option<usize>,
    /// Largest number of experts that a token uses in a layer.
    pub top_k: Option<usize>,
    /// The model's name.
    pub model: Option<String>,
}
