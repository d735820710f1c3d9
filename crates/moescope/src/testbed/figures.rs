//! The tables of a study: which figures stand where, and how they are written.

use moe_testbed::{PointSummary, Spread};
use moescope_cli::Table;

/// A figure in a table.
#[derive(Clone, Copy)]
pub(crate) struct Column {
    pub(crate) title: &'static str,
    /// Its name, where `{w}` stands for the window length of the tables.
    name: &'static str,
    /// What it is multiplied with.
    scale: f64,
    decimals: usize,
}

const fn column(title: &'static str, name: &'static str, decimals: usize) -> Column {
    Column { title, name, scale: 1.0, decimals }
}

const fn per_cent(title: &'static str, name: &'static str) -> Column {
    Column { title, name, scale: 100.0, decimals: 2 }
}

/// Title and columns of every table.
pub(crate) const TABLES: [(&str, &[Column]); 5] = [
    (
        "Distance to the reference (0 is as good as it; share: of the way there from shuffled labels)",
        &[
            column("purity", "distance_purity", 3),
            column("NMI", "distance_nmi", 3),
            column("share, purity", "share_purity", 3),
            column("share, NMI", "share_nmi", 3),
            column("utilization", "distance_utilization", 3),
            column("validation loss, nats", "distance_validation_loss", 4),
        ],
    ),
    (
        "Specialization beside its nulls",
        &[
            column("purity", "purity", 3),
            column("shuffled labels", "purity_shuffled_labels", 3),
            column("position", "purity_position", 3),
            column("hash", "purity_hash", 3),
            column("NMI", "nmi", 3),
            column("shuffled labels", "nmi_shuffled_labels", 3),
            column("position", "nmi_position", 3),
            column("hash", "nmi_hash", 3),
            column("precision, matched", "precision", 3),
            column("shuffled labels", "precision_shuffled_labels", 3),
            column("variation over domains", "specialization", 3),
        ],
    ),
    (
        "Load balance and local routing consistency",
        &[
            per_cent("SRP %", "srp_{w}"),
            per_cent("shuffled tokens", "srp_{w}_shuffled_tokens"),
            per_cent("lower bound", "srp_{w}_lower_bound"),
            column("rho^", "srp_{w}_rho", 2),
            column("load deviation, % points", "load_deviation_percent", 2),
            column("utilization", "utilization", 3),
            column("max load", "load_max", 2),
            column("dead experts a layer", "dead_experts", 2),
            column("validation loss, nats", "validation_loss", 4),
        ],
    ),
    (
        "Hit rates (paper convention), and speed under offloading with its hit rate (engine convention)",
        &[
            per_cent("LRU %", "lru"),
            per_cent("shuffled tokens", "lru_shuffled_tokens"),
            per_cent("SCH %", "look-ahead-{w}"),
            per_cent("shuffled tokens", "look-ahead-{w}_shuffled_tokens"),
            per_cent("Belady %", "belady"),
            column("slots", "offloading_slots", 0),
            per_cent("hit rate % (engine)", "offloading_hit_rate"),
            column("tokens/s", "tokens_per_second", 2),
            column("shuffled tokens", "tokens_per_second_shuffled_tokens", 2),
            column("all resident", "tokens_per_second_resident", 2),
        ],
    ),
    ("Size", &[column("parameters", "parameters", 0)]),
];

impl Column {
    /// Whether the figure is one of a window length.
    pub(crate) fn has_window(&self) -> bool {
        self.name.contains("{w}")
    }

    pub(crate) fn figure(&self, window: usize) -> String {
        self.name.replace("{w}", &window.to_string())
    }

    fn cell(&self, spread: &Spread) -> String {
        let number = |value: f64| format!("{:.*}", self.decimals, self.scale * value);
        let spread_of =
            if spread.deviation > 0.0 { format!(" ± {}", number(spread.deviation)) } else { String::new() };
        number(spread.mean) + &spread_of
    }
}

/// A table of the points; nothing if no point has any of its figures.
pub(crate) fn table(points: &[PointSummary], columns: &[Column], window: usize) -> Option<Table> {
    let spread = |point: &PointSummary, column: &Column| point.figures.get(&column.figure(window)).copied();
    if !points.iter().any(|point| columns.iter().any(|column| spread(point, column).is_some())) {
        return None;
    }
    let mut table = Table::new(["point", "seeds"].into_iter().chain(columns.iter().map(|column| column.title)));
    for point in points {
        let seeds = point.figures.values().next().map_or(0, |spread| spread.seeds);
        let cells = columns.iter().map(|column| spread(point, column).map_or("–".to_owned(), |s| column.cell(&s)));
        table.add_row([point.point.clone(), seeds.to_string()].into_iter().chain(cells));
    }
    table.align_right();
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_have_mean_and_spread_in_their_unit() {
        let spread = Spread::of(&[0.5, 0.7]).unwrap();
        assert_eq!(per_cent("", "srp_{w}").cell(&spread), "60.00 ± 14.14");
        assert_eq!(column("", "", 1).cell(&Spread::of(&[2.0]).unwrap()), "2.0");
        assert_eq!(per_cent("", "srp_{w}_rho").figure(16), "srp_16_rho");
    }
}
