//! HTTP: boot files with ranges, and a script for each machine that iPXE loads.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use protocol::machine::Mac;
use socket2::Type;
use tokio::net::TcpListener;
use tower_http::services::ServeDir;

use super::{Bootd, files, socket_on};
use crate::boot::script;

/// Connections that wait to be answered.
const BACKLOG: i32 = 256;

pub(super) fn listen(bootd: &Bootd) -> std::io::Result<TcpListener> {
    let config = bootd.config();
    let socket = socket_on(&bootd.interface, config.address, config.http_port, Type::STREAM)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

pub(super) async fn serve(listener: TcpListener, bootd: Arc<Bootd>) -> std::io::Result<()> {
    let boot_files = ServeDir::new(files::current(&bootd.folder)).append_index_html_on_directories(false);
    let router = Router::new()
        .route("/host/{mac}/boot.ipxe", get(host_script))
        .route("/host/{mac}/options", get(host_options))
        .nest_service("/boot", boot_files)
        .with_state(bootd);
    axum::serve(listener, router).await
}

async fn host_script(State(bootd): State<Arc<Bootd>>, Path(mac): Path<String>) -> Response {
    let Ok(mac) = mac.parse::<Mac>() else { return StatusCode::NOT_FOUND.into_response() };
    let text = match bootd.machines.take(mac).await {
        Ok(ticket) => script::ipxe(&bootd.base(), mac, &ticket),
        Err(error) => {
            tracing::info!(%mac, error = format!("{error:#}"), "iPXE has nothing to do");
            script::IPXE_NOTHING.into()
        }
    };
    plain(text)
}

/// For an installer that was started from a signed file.
async fn host_options(State(bootd): State<Arc<Bootd>>, Path(mac): Path<String>) -> Response {
    let Ok(mac) = mac.parse::<Mac>() else { return StatusCode::NOT_FOUND.into_response() };
    match bootd.machines.take(mac).await {
        Ok(ticket) => plain(format!("{}\n", script::options(&ticket))),
        Err(error) => {
            tracing::info!(%mac, error = format!("{error:#}"), "an installer has nothing to do");
            StatusCode::NOT_FOUND.into_response()
        }
    }
}

fn plain(text: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain"), (header::CACHE_CONTROL, "no-store")], text).into_response()
}
