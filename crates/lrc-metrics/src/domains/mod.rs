//! Metrics by text domain, and agreement of the routing with domains.

mod by_domain;
mod null_router;
mod reference_counts;
mod reference_routing;
mod specialization;

pub use by_domain::{ByDomain, DomainSrp};
pub use reference_counts::RoutingAgreement;
pub use reference_routing::{LayerAgreement, ReferenceRouting};
pub use specialization::{DomainLoad, domain_specialization};
