//! JSON expert traces as recorded of Granite models: nested lists by prompt.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::ids::{not_among, slot};
use super::model_layers::moe_layers;
use super::{ImportOptions, Importer, Input, Sample, record};
use crate::{
    DomainId, EMPTY_SLOT, Geometry, ImportReport, Phase, Place, Result, SequenceBuf, SequenceStream, TraceError,
};

/// `{"model", "num_layers", "num_experts", "top_k", "prompts": {name: {"prompt_len", "prefill", "decode"}}}`, where
/// `prefill` and `decode` are lists `[token][layer][k]` of ids.
///
/// Each prompt is a sequence, and its name a domain. A list shorter than `top_k` leaves slots empty.
pub(super) struct Granite;

impl Importer for Granite {
    fn name(&self) -> &'static str {
        "granite-json"
    }

    fn description(&self) -> &'static str {
        "JSON of prompts with nested lists [token][layer][k] for prefill and decode"
    }

    fn options(&self) -> &'static [&'static str] {
        &["--experts", "--top-k", "--config", "--empty-id"]
    }

    fn detects(&self, sample: &Sample) -> bool {
        let start = sample.head().trim_ascii_start();
        start.starts_with(b"{") && sample.contains("\"prompts\"") && sample.contains("\"num_experts\"")
    }

    fn open(&self, input: &Input, options: &ImportOptions) -> Result<Box<dyn SequenceStream>> {
        let path = input.path();
        // Not mapped: a file that is cut meanwhile ends early, and a parser cannot look at the file between its steps.
        let document: Document = serde_json::from_reader(input.reader()?).map_err(|source| malformed(path, source))?;
        document.check(path, options)
    }
}

fn malformed(path: &Path, source: serde_json::Error) -> TraceError {
    TraceError::Malformed { path: path.to_owned(), format: "JSON", source: Box::new(source) }
}

#[derive(serde::Deserialize)]
struct Document {
    #[serde(default)]
    model: Option<String>,
    num_layers: usize,
    num_experts: usize,
    top_k: usize,
    #[serde(deserialize_with = "prompts")]
    prompts: Vec<(String, Prompt)>,
}

#[derive(Default)]
struct Prompt {
    prompt_len: Option<usize>,
    prefill: Ids,
    decode: Ids,
}

/// Ids of a nested list, flat, `[tokens x layers x k]`, and how the list was shaped.
#[derive(Default)]
struct Ids {
    flat: Vec<i64>,
    /// Experts of each token and layer.
    cells: Vec<u16>,
    /// Layers of each token.
    tokens: Vec<u32>,
}

impl Document {
    fn check(self, path: &Path, options: &ImportOptions) -> Result<Box<dyn SequenceStream>> {
        let plain = Geometry::decoder(self.num_layers, self.num_experts, self.top_k)?;
        let numbers: Vec<_> = plain.moe_layers().iter().map(|layer| (layer.stack, layer.model_layer)).collect();
        let mut report = ImportReport::default();
        let layers = moe_layers(path, options, &numbers, &mut report)?;
        let geometry = Geometry::new(layers, self.num_experts, self.top_k)?;
        let same = |field, found: usize, given: Option<usize>| match given {
            Some(given) if given != found => {
                let limit = format!("the options say {given}");
                Err(record(path, Place::Entry("document".to_owned()), field, &found.to_string(), limit))
            }
            _ => Ok(()),
        };
        same("num_experts", self.num_experts, options.known_experts())?;
        same("top_k", self.top_k, options.top_k)?;
        let mut sequences = Vec::new();
        let (mut domains, mut names) = (Vec::new(), HashSet::new());
        for (name, prompt) in self.prompts {
            let place = || Place::Entry(format!("prompt {name:?}"));
            if !names.insert(name.clone()) {
                return Err(record(path, place(), "name", "another prompt's", "expected each name once"));
            }
            let prefilled = prompt.prefill.tokens.len();
            if let Some(claimed) = prompt.prompt_len.filter(|&claimed| claimed != prefilled) {
                let limit = format!("prefill has {prefilled} tokens");
                return Err(record(path, place(), "prompt_len", &claimed.to_string(), limit));
            }
            let mut sequence = SequenceBuf::default();
            for (ids, phase, field) in
                [(prompt.prefill, Phase::Prefill, "prefill"), (prompt.decode, Phase::Decode, "decode")]
            {
                sequence.phases.resize(sequence.phases.len() + ids.tokens.len(), phase.code());
                ids.append(&geometry, options, &mut sequence.experts)
                    .map_err(|(found, limit)| record(path, place(), field, &found, limit))?;
            }
            let domain = u16::try_from(domains.len()).map_err(|_| {
                let limit = format!("at most {}", u16::MAX);
                record(path, place(), "number of prompts", &domains.len().to_string(), limit)
            })?;
            sequence.domain = Some(DomainId(domain));
            sequences.push(sequence);
            domains.push(name);
        }
        let model = options.model.clone().or(self.model);
        Ok(Box::new(Prompts { geometry, model, domains, report, sequences: sequences.into_iter() }))
    }
}

impl Ids {
    /// Appends the ids, every cell widened to `top_k`; on failure says what was found and what is allowed.
    fn append(
        self,
        geometry: &Geometry,
        options: &ImportOptions,
        out: &mut Vec<u16>,
    ) -> std::result::Result<(), (String, String)> {
        let (layers, k) = (geometry.layers(), geometry.top_k());
        if let Some(token) = self.tokens.iter().position(|&found| found as usize != layers) {
            return Err((format!("{} layers at token {token}", self.tokens[token]), format!("expected {layers}")));
        }
        // A cell of the file may be shorter than top_k, but not so that top_k alone decides how much memory it takes.
        let slots = self.cells.len().saturating_mul(k);
        if slots / 64 > self.flat.len() + layers {
            return Err((format!("{} ids in {} cells", self.flat.len(), self.cells.len()), format!("top_k is {k}")));
        }
        out.reserve(slots);
        let mut rest = self.flat.as_slice();
        for (cell, &len) in self.cells.iter().enumerate() {
            let (ids, after) = rest.split_at(usize::from(len));
            rest = after;
            if ids.len() > k {
                let (token, layer) = (cell / layers, cell % layers);
                return Err((
                    format!("{} ids at token {token}, layer {layer}", ids.len()),
                    format!("expected at most {k}"),
                ));
            }
            for &id in ids {
                let expert = slot(id, options);
                out.push(expert.filter(|&id| id == EMPTY_SLOT || usize::from(id) < geometry.experts()).ok_or_else(
                    || {
                        let found = format!("{id} at token {}, layer {}", cell / layers, cell % layers);
                        (found, not_among(id, geometry.experts()))
                    },
                )?);
            }
            out.resize(out.len() + k - ids.len(), EMPTY_SLOT);
        }
        Ok(())
    }
}

/// The prompts in the order of the file.
fn prompts<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<(String, Prompt)>, D::Error> {
    struct ByName;
    impl<'de> Visitor<'de> for ByName {
        type Value = Vec<(String, Prompt)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of prompts")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
            let mut prompts = Vec::new();
            while let Some(name) = map.next_key()? {
                prompts.push((name, map.next_value_seed(OnePrompt)?));
            }
            Ok(prompts)
        }
    }
    deserializer.deserialize_map(ByName)
}

struct OnePrompt;

impl<'de> DeserializeSeed<'de> for OnePrompt {
    type Value = Prompt;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Prompt, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for OnePrompt {
    type Value = Prompt;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with prefill and decode")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Prompt, A::Error> {
        let mut prompt = Prompt::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "prompt_len" => prompt.prompt_len = Some(map.next_value()?),
                "prefill" => prompt.prefill = tokens(&mut map)?,
                "decode" => prompt.decode = tokens(&mut map)?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(prompt)
    }
}

fn tokens<'de, A: MapAccess<'de>>(map: &mut A) -> std::result::Result<Ids, A::Error> {
    let mut ids = Ids::default();
    map.next_value_seed(NestedList { level: Level::Tokens, ids: &mut ids })?;
    Ok(ids)
}

/// Reads one level of `[token][layer][k]` into [`Ids`].
#[derive(Clone, Copy)]
enum Level {
    Tokens,
    Layers,
    Experts,
}

struct NestedList<'a> {
    level: Level,
    ids: &'a mut Ids,
}

impl<'de> DeserializeSeed<'de> for NestedList<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for NestedList<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.level {
            Level::Tokens => "a list of tokens",
            Level::Layers => "the layers of a token",
            Level::Experts => "the experts of a layer",
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<(), A::Error> {
        let NestedList { level, ids } = self;
        let mut len = 0;
        match level {
            Level::Tokens => {
                while list.next_element_seed(NestedList { level: Level::Layers, ids: &mut *ids })?.is_some() {}
            }
            Level::Layers => {
                while list.next_element_seed(NestedList { level: Level::Experts, ids: &mut *ids })?.is_some() {
                    len += 1;
                }
                ids.tokens.push(len);
            }
            Level::Experts => {
                while let Some(id) = list.next_element()? {
                    ids.flat.push(id);
                    len += 1;
                }
                let len =
                    u16::try_from(len).map_err(|_| de::Error::invalid_length(len as usize, &"at most 65535 ids"))?;
                ids.cells.push(len);
            }
        }
        Ok(())
    }
}

/// The prompts, one after the other.
struct Prompts {
    geometry: Geometry,
    model: Option<String>,
    domains: Vec<String>,
    report: ImportReport,
    sequences: std::vec::IntoIter<SequenceBuf>,
}

impl SequenceStream for Prompts {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn domains(&self) -> &[String] {
        &self.domains
    }

    fn report(&self) -> &ImportReport {
        &self.report
    }

    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    fn next_sequence(&mut self) -> Result<Option<SequenceBuf>> {
        Ok(self.sequences.next())
    }
}
