//! Fields that change what a row means, beside those that say where it belongs.

use super::ImportOptions;
use crate::Phase;

/// What a field of yes or no decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The row is no token of a sequence if the field has this value.
    LeftOutIf(bool),
    /// The token is prefilled if the field has this value, and decoded otherwise.
    PrefillIf(bool),
    /// The field may change what the row means, and no importer of rows knows how.
    NotUsed,
}

/// Fields by their usual names.
const ROLES: [(&str, Role); 33] = [
    ("is_padding", Role::LeftOutIf(true)),
    ("is_pad", Role::LeftOutIf(true)),
    ("padding", Role::LeftOutIf(true)),
    ("padded", Role::LeftOutIf(true)),
    ("is_dummy", Role::LeftOutIf(true)),
    ("dummy", Role::LeftOutIf(true)),
    ("is_warmup", Role::LeftOutIf(true)),
    ("warmup", Role::LeftOutIf(true)),
    ("is_profile", Role::LeftOutIf(true)),
    ("rejected", Role::LeftOutIf(true)),
    ("is_rejected", Role::LeftOutIf(true)),
    ("valid", Role::LeftOutIf(false)),
    ("is_valid", Role::LeftOutIf(false)),
    ("accepted", Role::LeftOutIf(false)),
    ("is_accepted", Role::LeftOutIf(false)),
    ("is_prefill", Role::PrefillIf(true)),
    ("is_prompt", Role::PrefillIf(true)),
    ("is_decode", Role::PrefillIf(false)),
    ("is_generated", Role::PrefillIf(false)),
    ("dropped", Role::NotUsed),
    ("is_dropped", Role::NotUsed),
    ("batch", Role::NotUsed),
    ("batch_id", Role::NotUsed),
    ("batch_idx", Role::NotUsed),
    ("batch_index", Role::NotUsed),
    ("beam", Role::NotUsed),
    ("beam_idx", Role::NotUsed),
    ("dp_rank", Role::NotUsed),
    ("pp_rank", Role::NotUsed),
    ("attention_mask", Role::NotUsed),
    ("is_draft", Role::NotUsed),
    ("num_tokens_padded", Role::NotUsed),
    ("num_padded_tokens", Role::NotUsed),
];

/// The role of a field, with its usual name; `None` for fields without one and for those that the user reads as a column.
pub(super) fn role(name: &str, options: &ImportOptions) -> Option<(&'static str, Role)> {
    let role = ROLES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).copied()?;
    options.columns.iter().all(|(_, mapped)| mapped != name).then_some(role)
}

/// The value of a field of yes or no.
pub(super) fn flag(text: &str) -> Option<bool> {
    let is = |values: [&str; 3]| values.iter().any(|value| value.eq_ignore_ascii_case(text));
    match (is(["true", "1", "yes"]), is(["false", "0", "no"])) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    }
}

/// What such fields say about a row.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// The field by which the row is no token of a sequence.
    pub(super) left_out: Option<&'static str>,
    pub(super) phase: Option<Phase>,
    /// Fields that are there and not used.
    pub(super) not_used: Vec<&'static str>,
}

impl Said {
    /// Takes a field; `flag` is its value, `None` if it is neither yes nor no. On failure returns what is allowed.
    pub(super) fn take(&mut self, name: &'static str, role: Role, flag: Option<bool>) -> Result<(), &'static str> {
        let yes_or_no = || flag.ok_or("expected true, false, 0 or 1");
        match role {
            Role::NotUsed => self.not_used.push(name),
            Role::LeftOutIf(value) => {
                if yes_or_no()? == value {
                    self.left_out = Some(name);
                }
            }
            Role::PrefillIf(value) => {
                let phase = if yes_or_no()? == value { Phase::Prefill } else { Phase::Decode };
                if self.phase.replace(phase).is_some_and(|other| other != phase) {
                    return Err("another field says the other phase");
                }
            }
        }
        Ok(())
    }

    /// Forgets what the fields of the row before said.
    pub(super) fn clear(&mut self) {
        self.left_out = None;
        self.phase = None;
        self.not_used.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_decide_by_their_value() {
        let said = |fields: &[(&str, &str)]| {
            let mut said = Said::default();
            for (name, value) in fields {
                let (name, role) = role(name, &ImportOptions::default()).unwrap();
                said.take(name, role, flag(value))?;
            }
            Ok::<Said, &str>(said)
        };
        assert_eq!(said(&[("Is_Padding", "True")]).unwrap().left_out, Some("is_padding"));
        assert_eq!(said(&[("is_padding", "0"), ("valid", "yes")]).unwrap(), Said::default());
        assert_eq!(said(&[("accepted", "false")]).unwrap().left_out, Some("accepted"));
        assert_eq!(said(&[("is_prefill", "1")]).unwrap().phase, Some(Phase::Prefill));
        assert_eq!(said(&[("is_decode", "1"), ("is_prefill", "0")]).unwrap().phase, Some(Phase::Decode));
        assert_eq!(said(&[("dropped", "any"), ("batch", "7")]).unwrap().not_used, ["dropped", "batch"]);
        assert_eq!(said(&[("padding", "3")]).unwrap_err(), "expected true, false, 0 or 1");
        assert_eq!(said(&[("is_decode", "1"), ("is_prefill", "1")]).unwrap_err(), "another field says the other phase");
        let mapped = ImportOptions { columns: vec![("sequence".into(), "batch".into())], ..ImportOptions::default() };
        assert_eq!((role("batch", &mapped), role("expert", &mapped)), (None, None));
    }
}
