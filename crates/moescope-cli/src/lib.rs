//! Arguments, files, tables, pages, threads and devices of the programs of this workspace: `moescope` and the quickstart.

mod arguments;
mod device;
mod document;
mod experts;
mod files;
mod foreign;
mod memory;
mod numbers;
mod output;
mod page;
mod plot;
mod print;
mod prompts;
mod provenance;
mod run;
mod shown;
mod slots;
mod table;
mod threads;
mod unused;
mod windows;

pub use arguments::{HELD_OUT, POSITIVE, SHARE, each_once, number, parse, whole};
pub use device::{DeviceName, page_lock};
pub use document::Document;
pub use experts::{host_experts, mapped_experts, open_checkpoint};
pub use files::Files;
pub use foreign::{Foreign, collect, open_trace, phase};
pub use memory::check_memory;
pub use numbers::{Numbers, distinct_numbers, numbers};
pub use output::{
    byte_bar, no_formula, output_path, per_cent, print_warnings, progress_bar, spinner, write_bytes, write_csv,
    write_json, write_text,
};
pub use page::Page;
pub use plot::{Axis, Chart, Drawing, HeatMap, Point, Series, TokenMap, Weight, escape, visible};
pub use print::{print_error_line, print_line};
pub use prompts::{Prompt, built_in_prompts};
pub use provenance::{Provenance, Reported};
pub use run::run;
pub use shown::shown;
pub use slots::{cache_sizes, slots_of};
pub use table::{Table, table};
pub use threads::{processors, set_threads};
pub use unused::{LEFT_OUT, NO_COST, layers_without_access, unused_layers};
pub use windows::fitting_windows;
