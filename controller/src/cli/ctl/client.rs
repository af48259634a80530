//! The API as `coe-ctl` uses it.

use std::net::ToSocketAddrs as _;

use anyhow::{Context as _, bail};
use protocol::identity::CONTROLLER_NAME;
use protocol::io::credentials::Credentials;
use protocol::io::tls;
use reqwest::Method;
use serde::{Serialize, de::DeserializeOwned};

use super::Common;

/// A client of one controller.
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
}

pub(super) fn credentials(common: &Common) -> anyhow::Result<Credentials> {
    Credentials::load(&common.credentials_file()).context(
        "no admin's credentials: on the controller `coe-controller init` makes them; elsewhere run `coe-ctl login TICKET` \
         with a ticket of `coe-ctl token create --admin`",
    )
}

impl Client {
    pub(super) fn new(common: &Common) -> anyhow::Result<Self> {
        let admin = credentials(common)?;
        let resolved = admin.controller.iter().find_map(|a| a.to_socket_addrs().ok()?.next());
        let address = resolved.with_context(|| format!("find the controller at {}", admin.controller.join(", ")))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client(&admin, b"http/1.1")?)
            .resolve(CONTROLLER_NAME, address)
            .no_proxy()
            .connect_timeout(std::time::Duration::from_secs(5))
            .build()?;
        Ok(Self { http, base: format!("https://{CONTROLLER_NAME}:{}", address.port()) })
    }

    async fn send<R: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> anyhow::Result<R> {
        let answer = request.send().await.map_err(|e| {
            let hint = if e.is_connect() {
                "reach the controller: is `coe-controller serve` running? While it is away, `images`, `show` and `verify` ask a stash with --via HOST:PORT"
            } else {
                "ask the controller"
            };
            anyhow::Error::new(e.without_url()).context(hint)
        })?;
        if answer.status().is_success() {
            return Ok(answer.json().await?);
        }
        let status = answer.status();
        let body: serde_json::Value = answer.json().await.unwrap_or_default();
        match body["error"].as_str() {
            Some(error) => bail!("{error}"),
            None => bail!("the controller answered {status}"),
        }
    }

    pub(super) async fn get<R: DeserializeOwned>(&self, path: &str) -> anyhow::Result<R> {
        self.send(self.http.get(format!("{}{path}", self.base))).await
    }

    pub(super) async fn delete<R: DeserializeOwned>(&self, path: &str) -> anyhow::Result<R> {
        self.send(self.http.delete(format!("{}{path}", self.base))).await
    }

    pub(super) async fn post<R: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<R> {
        self.send(self.http.request(Method::POST, format!("{}{path}", self.base)).json(body)).await
    }
}
