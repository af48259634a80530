//! HTTPS with JSON, for people and their automation. An admin's certificate is needed for everything; `/openapi.json` describes
//! it all.

mod machines;
mod policy;
mod repair;
mod restripe;
mod routes;
mod tls_listener;

pub use machines::{
    BootServerChange, BootServerInfo, DeployInfo, DeployRequest, HostChange, HostInfo, NewHost, Numbers,
};
pub use policy::{Count, Explanation, GroupInfo, LabelChange, Labelled, PolicyInfo};
pub use repair::{Health, MoveInfo, NewMassStorage, NodeChange, NodeChanged, NodesChange, RepairInfo};
pub use restripe::{RestripeAnswer, RestripeInfo, RestripeRequest, RestripeState};
pub use routes::{
    Api, GcRequest, ImageDetail, ImageInfo, NodeInfo, OverruleRequest, OverruleResponse, PartitionInfo, Status,
    SweepResult, TicketRequest, TicketResponse, VerifyRequest, VerifyStarted,
};
pub use tls_listener::{Acceptor, Server};
