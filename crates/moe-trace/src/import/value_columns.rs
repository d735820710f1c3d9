//! Columns that hold the experts and weights of a row: one form of three, and no column twice.

use super::ImportOptions;
use super::fields::role;
use super::rows::{is_known, names};

/// What contradicts itself among the names of a file: field, value, and what to do.
pub(super) type Contradiction = (&'static str, String, String);

/// The forms in which values of a row can stand: the column of one value, the column of a list.
const FORMS: [(&str, &str); 2] = [("expert", "experts"), ("weight", "weights")];

/// The number of a column such as `expert_0`.
fn number(one: &str, name: &str) -> Option<usize> {
    let digits = name.strip_prefix(one)?.strip_prefix('_')?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Whether a column is one of several that hold a slot each.
pub(super) fn is_numbered(one: &str, name: &str) -> bool {
    number(one, name).is_some()
}

/// Refuses names that stand twice and are read, and values of a row that stand in more than one form.
pub(super) fn refuse_doubles(found: &[&str], options: &ImportOptions) -> Result<(), Contradiction> {
    for (at, name) in found.iter().enumerate() {
        let is_read = || {
            is_known(name)
                || options.columns.iter().any(|(_, mapped)| mapped == name)
                || role(name, options).is_some()
                || FORMS.iter().any(|(one, _)| is_numbered(one, name))
        };
        if found[..at].contains(name) && is_read() {
            return Err(("columns", format!("{name}, {name}"), format!("{name} stands twice: rename or remove one")));
        }
    }
    for (one, list) in FORMS {
        let is_chosen = |name: &str| options.columns.iter().any(|(column, _)| column == name);
        let first = |column: &str| names(column, options).into_iter().find(|name| found.contains(&name.as_str()));
        let forms: Vec<String> = match (is_chosen(one), is_chosen(list)) {
            (true, false) => {
                let chosen = first(one);
                // Of several slots the user names one: the others would be lost.
                let others =
                    |name: &&&str| chosen.as_deref().is_some_and(|chosen| **name != chosen && is_numbered(one, chosen));
                let other =
                    found.iter().filter(others).find(|name| is_numbered(one, name)).map(|&name| name.to_owned());
                chosen.clone().into_iter().chain(other).collect()
            }
            (false, true) => first(list).into_iter().collect(),
            _ => {
                let slot = found.iter().find(|name| is_numbered(one, name)).map(|&name| name.to_owned());
                first(one).into_iter().chain(first(list)).chain(slot).collect()
            }
        };
        if let [one_name, other, ..] = forms.as_slice() {
            let limit = if is_numbered(one, one_name) {
                format!(
                    "the columns {one}_N are the slots of one row: leave out --column {one}, or all but one of them"
                )
            } else {
                format!(
                    "both say the {list} of a row: remove one, or name the one that counts by --column {one}=NAME (one value) \
                     or --column {list}=NAME (a list)"
                )
            };
            return Err(("columns", format!("{one_name}, {other}"), limit));
        }
    }
    Ok(())
}

/// The names of the columns `one_0`, `one_1`, ... or `one_1`, `one_2`, ... in the order of their numbers, with the first
/// number; a number that is missing or stands twice is refused.
pub(super) fn numbered(one: &str, found: &[&str]) -> Result<Option<(usize, Vec<String>)>, Contradiction> {
    let mut columns: Vec<(usize, &str)> =
        found.iter().filter_map(|&name| number(one, name).map(|number| (number, name))).collect();
    columns.sort_unstable();
    let Some(&(first, _)) = columns.first() else { return Ok(None) };
    let shown = || columns.iter().map(|&(_, name)| name).collect::<Vec<_>>().join(", ");
    if let Some(pair) = columns.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let value = format!("{}, {}", pair[0].1, pair[1].1);
        return Err(("columns", value, "both have one number: rename or remove one".to_owned()));
    }
    let base = first.min(1);
    let missing = (base..).zip(&columns).find(|&(expected, &(number, _))| expected != number);
    if let Some((missing, _)) = missing {
        let limit = format!(
            "{one}_{missing} is missing: a row has all of its slots, numbered from 0 or from 1; add it, or rename the others"
        );
        return Err(("columns", shown(), limit));
    }
    Ok(Some((first, columns.into_iter().map(|(_, name)| name.to_owned()).collect())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_columns_are_whole_and_in_order() {
        let names = |found: &[&str]| numbered("expert", found);
        let some = |first, names: &[&str]| Ok(Some((first, names.iter().map(|&name| name.to_owned()).collect())));
        assert_eq!(names(&["token", "expert_1", "expert_0"]), some(0, &["expert_0", "expert_1"]));
        assert_eq!(names(&["expert_2", "expert_1"]), some(1, &["expert_1", "expert_2"]));
        assert_eq!(names(&["expert_10", "expert", "expert_id"]).unwrap_err().2.split(' ').next(), Some("expert_1"));
        assert_eq!(names(&["expert_0", "expert_2"]).unwrap_err().2.split(' ').next(), Some("expert_1"));
        assert_eq!(names(&["expert_0", "expert_00"]).unwrap_err().1, "expert_0, expert_00");
        assert_eq!(names(&["weight_0"]), Ok(None));
    }

    #[test]
    fn one_form_counts() {
        let check = |found: &[&str], columns: &[(&str, &str)]| {
            let columns = columns.iter().map(|&(column, name)| (column.to_owned(), name.to_owned())).collect();
            refuse_doubles(found, &ImportOptions { columns, ..ImportOptions::default() }).map_err(|(_, value, _)| value)
        };
        assert_eq!(check(&["token", "layer", "expert", "note", "note"], &[]), Ok(()));
        assert_eq!(check(&["token", "token"], &[]), Err("token, token".to_owned()));
        assert_eq!(check(&["valid", "valid"], &[]), Err("valid, valid".to_owned()));
        assert_eq!(check(&["expert_0", "experts"], &[]), Err("experts, expert_0".to_owned()));
        assert_eq!(check(&["expert", "topk_ids"], &[]), Err("expert, topk_ids".to_owned()));
        assert_eq!(check(&["gate", "weights"], &[]), Err("gate, weights".to_owned()));
        assert_eq!(check(&["expert", "topk_ids"], &[("experts", "topk_ids")]), Ok(()));
        assert_eq!(check(&["expert_1", "expert_2"], &[("expert", "expert_1")]), Err("expert_1, expert_2".to_owned()));
        assert_eq!(check(&["mine", "mine"], &[("expert", "mine")]), Err("mine, mine".to_owned()));
    }
}
