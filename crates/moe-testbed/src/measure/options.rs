//! What is measured on a trained model.

use expert_cache::HardwareProfile;
use serde::{Deserialize, Serialize};

use crate::error::{Result, check};

/// What is measured on a trained model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeasureOptions {
    /// Held-out sequences of each domain.
    pub sequences: usize,
    /// Window lengths of SRP and of SCH, in tokens, at most those of a sequence.
    pub windows: Vec<usize>,
    /// Size of the cache of LRU, Belady and SCH, relative to the experts of a token.
    pub rho: f64,
    /// The machine and the model whose speed is predicted.
    pub speed: SpeedOptions,
}

/// The machine and the model whose speed is predicted.
///
/// A small model says nothing about the time of a large one, so it is taken as the plan of one: the weights of its layers
/// grow by one factor until they have `model_gigabytes`. Models of equal parameters grow by the same factor. Embedding and
/// output projection, outsized in a small model and the same for all, are left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpeedOptions {
    /// The machine.
    pub machine: Machine,
    /// All weights of the layers, in units of 10^9 bytes, two bytes a weight.
    pub model_gigabytes: f64,
    /// Memory of the device, in units of 10^9 bytes: what every token computes is resident, the rest are slots of experts,
    /// as many in each layer.
    pub memory_gigabytes: f64,
}

/// A machine by the name of a preset, or by its own profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Machine {
    /// The name of a [preset](HardwareProfile::presets).
    Preset(String),
    /// A profile.
    Profile(Box<HardwareProfile>),
}

impl Default for MeasureOptions {
    fn default() -> MeasureOptions {
        MeasureOptions { sequences: 32, windows: vec![4, 16, 64], rho: 2.0, speed: SpeedOptions::default() }
    }
}

impl Default for SpeedOptions {
    /// A model of 24 GB on a laptop with 8 GB for it.
    fn default() -> SpeedOptions {
        SpeedOptions { machine: Machine::Preset("laptop-gpu".to_owned()), model_gigabytes: 24.0, memory_gigabytes: 8.0 }
    }
}

impl Machine {
    /// The profile, checked.
    ///
    /// # Errors
    /// [`CacheError::UnknownPreset`](expert_cache::CacheError::UnknownPreset) or
    /// [`CacheError::Profile`](expert_cache::CacheError::Profile).
    pub fn profile(&self) -> Result<HardwareProfile> {
        let profile = match self {
            Machine::Preset(name) => HardwareProfile::preset(name)?,
            Machine::Profile(profile) => (**profile).clone(),
        };
        profile.check()?;
        Ok(profile)
    }
}

impl MeasureOptions {
    /// Checks the figures for sequences of `length` tokens.
    ///
    /// # Errors
    /// [`TestbedError::Option`](crate::TestbedError::Option); as [`Machine::profile`].
    pub fn check(&self, length: usize) -> Result<()> {
        // One half of a domain's sequences is matched on, the other is judged.
        check("measure.sequences", self.sequences, self.sequences >= 2, "2 and more")?;
        check("measure.windows", self.windows.len(), !self.windows.is_empty(), "1 and more window lengths")?;
        for &window in &self.windows {
            let fits = (1..=length).contains(&window);
            check("measure.windows", window, fits, format!("1..={length}, the length of a sequence"))?;
        }
        let positive = |option, value: f64| check(option, value, value > 0.0 && value.is_finite(), "above 0");
        positive("measure.rho", self.rho)?;
        positive("measure.speed.model_gigabytes", self.speed.model_gigabytes)?;
        positive("measure.speed.memory_gigabytes", self.speed.memory_gigabytes)?;
        self.speed.machine.profile()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_out_of_range_are_errors() {
        let options: fn(&str) -> MeasureOptions = |text| toml::from_str(text).unwrap();
        let message = |text| options(text).check(128).unwrap_err().to_string();
        assert_eq!(message("sequences = 1"), "measure.sequences is 1, allowed are 2 and more");
        assert_eq!(
            message("windows = [4, 256]"),
            "measure.windows is 256, allowed are 1..=128, the length of a sequence"
        );
        assert_eq!(message("speed.memory_gigabytes = 0.0"), "measure.speed.memory_gigabytes is 0, allowed are above 0");
        let error = options("speed.machine = \"abacus\"").check(128).unwrap_err();
        assert!(crate::error::in_one_line(&error).contains("there is no preset \"abacus\""));
        options("").check(128).unwrap();
    }
}
