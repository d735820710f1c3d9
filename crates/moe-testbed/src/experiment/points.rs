//! The points of an experiment, from tables in which a list of values stands for as many points.

use toml::{Table, Value};

/// A point: a name, and what it changes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) model: Table,
    pub(super) training: Table,
    pub(super) architecture: Option<Table>,
}

/// A field and the values that it takes in turn.
struct Axis {
    path: Vec<String>,
    values: Vec<Value>,
}

/// All points of a table: every combination of the values in its lists. A point is named after its values, with the name
/// of the table, if it has one, in front.
pub(super) fn expand(table: &Table) -> Result<Vec<Settings>, String> {
    let mut settings = table.clone();
    let prefix = match settings.remove("name") {
        Some(Value::String(name)) => Some(name),
        Some(other) => return Err(format!("name is {other}, it must be a string")),
        None => None,
    };
    for (key, value) in &settings {
        if !["model", "training", "architecture"].contains(&key.as_str()) {
            return Err(format!("unknown field {key}, expected name, model, training or architecture"));
        }
        if !value.is_table() {
            return Err(format!("{key} is {value}, it must be a table of fields"));
        }
    }
    let mut axes = Vec::new();
    find_axes(&settings, &mut Vec::new(), &mut axes);
    if let Some(empty) = axes.iter().find(|axis| axis.values.is_empty()) {
        return Err(format!("{} has no values", empty.path.join(".")));
    }
    let mut points = vec![(prefix.into_iter().collect::<Vec<_>>(), settings)];
    for axis in &axes {
        let with = |(names, settings): &(Vec<String>, Table), value: &Value| {
            let (mut names, mut settings) = (names.clone(), settings.clone());
            names.push(label(axis, value));
            set(&mut settings, &axis.path, value.clone());
            (names, settings)
        };
        points = points.iter().flat_map(|point| axis.values.iter().map(move |value| with(point, value))).collect();
    }
    points.into_iter().map(|(names, settings)| named(&names.join("-"), settings)).collect()
}

fn named(name: &str, mut settings: Table) -> Result<Settings, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.=".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(fits) {
        return Err(format!("name is {name:?}, it must be letters, digits and -_.= as it names a folder"));
    }
    let mut take = |key: &str| match settings.remove(key) {
        Some(Value::Table(table)) => Some(table),
        _ => None,
    };
    Ok(Settings {
        name: name.to_owned(),
        model: take("model").unwrap_or_default(),
        training: take("training").unwrap_or_default(),
        architecture: take("architecture"),
    })
}

fn find_axes(table: &Table, path: &mut Vec<String>, axes: &mut Vec<Axis>) {
    for (key, value) in table {
        path.push(key.clone());
        match value {
            Value::Table(inner) => find_axes(inner, path, axes),
            Value::Array(values) => axes.push(Axis { path: path.clone(), values: values.clone() }),
            _ => {}
        }
        path.pop();
    }
}

/// A word stands for itself, anything else behind its field.
fn label(axis: &Axis, value: &Value) -> String {
    match value {
        Value::String(word) => word.clone(),
        value => format!("{}={value}", axis.path.last().map_or("", String::as_str)),
    }
}

fn set(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [field] => {
            table.insert(field.clone(), value);
        }
        [field, rest @ ..] => {
            if let Some(Value::Table(inner)) = table.get_mut(field) {
                set(inner, rest, value);
            }
        }
    }
}

/// A table with the fields of another in place of its own; tables within are merged.
pub(super) fn merge(mut base: Table, changes: &Table) -> Table {
    for (key, value) in changes {
        let merged = match (base.remove(key), value) {
            (Some(Value::Table(base)), Value::Table(changes)) => Value::Table(merge(base, changes)),
            (_, value) => value.clone(),
        };
        base.insert(key.clone(), merged);
    }
    base
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(text: &str) -> Result<Vec<Settings>, String> {
        expand(&text.parse().unwrap())
    }

    #[test]
    fn lists_are_multiplied_and_single_values_are_kept() {
        let text = "name = \"x\"\nmodel.router = [\"a\", \"b\"]\ntraining.balancing = { scope = \"s\", rate = [1, 2] }";
        let points = points(text).unwrap();
        let names: Vec<&str> = points.iter().map(|point| point.name.as_str()).collect();
        assert_eq!(names, ["x-a-rate=1", "x-a-rate=2", "x-b-rate=1", "x-b-rate=2"]);
        let last = points.last().unwrap();
        assert_eq!(last.training, "balancing = { rate = 2, scope = \"s\" }".parse().unwrap());
        assert_eq!(last.architecture, None);
    }

    #[test]
    fn bad_points_say_why() {
        let message = |text| points(text).unwrap_err();
        assert!(message("").contains("name is \"\""));
        assert_eq!(message("router = 1"), "unknown field router, expected name, model, training or architecture");
        assert_eq!(message("model = 1"), "model is 1, it must be a table of fields");
        assert_eq!(message("name = 1"), "name is 1, it must be a string");
        assert_eq!(message("model.router = []"), "model.router has no values");
        assert!(message("name = \"../a\"").contains("it names a folder"));
    }

    #[test]
    fn merging_reaches_into_tables() {
        let table = |text: &str| -> Table { text.parse().unwrap() };
        let merged = merge(table("a = 1\nb = { c = 1, d = 1 }"), &table("b.c = 2\ne = 3"));
        assert_eq!(merged, table("a = 1\nb = { c = 2, d = 1 }\ne = 3"));
    }
}
