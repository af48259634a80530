//! `cargo xtask bench boot`: a real boot server serves a file over a shaped link, by HTTP and by TFTP with window 16.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;

use super::median;
use crate::lab::{Dhcp, Lab, Setup, network};
use crate::setup::tool;
use crate::{sample, setup, shell};

/// Boot files over a shaped link, by HTTP and TFTP
#[derive(Args)]
pub struct Boot {
    /// Runs of each; medians are printed
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

/// Megabits a second of the link, the file that is loaded over it, and its megabytes: some seconds. A boot set has both files.
const LINKS: [(u64, &str, usize); 2] = [(100, "vmlinuz", 40), (1000, "initrd.img", 250)];
/// (program, package) of the clients.
const NEEDS: &[(&str, &str)] = &[("curl", "curl"), ("atftp", "atftp"), ("tc", "iproute2")];
/// Of an Ethernet frame of 1514 bytes, what TCP with timestamps and TFTP with blocks of 1468 bytes can carry.
const TCP_PAYLOAD: f64 = 1448.0 / 1514.0;
const TFTP_PAYLOAD: f64 = 1468.0 / 1514.0;

/// Have the cable to the client carry this many megabits a second. The kernel counts every frame with its header, also of packets that
/// it cuts only there.
fn shape(mbit: u64) -> anyhow::Result<()> {
    let cable = network::CABLE;
    let rate = format!("{mbit}mbit");
    let tbf = ["qdisc", "replace", "dev", cable, "root", "tbf", "rate", &rate, "burst", "256kb", "latency", "40ms"];
    shell::output(tool("tc").args(tbf)).map(drop)
}

/// Seconds that a client needs, on the other end of the cable.
fn load(client: &[&str]) -> anyhow::Result<f64> {
    let start = Instant::now();
    shell::output(tool("ip").args(["netns", "exec", network::OTHER_HOST]).args(client))?;
    Ok(start.elapsed().as_secs_f64())
}

impl Boot {
    /// Run it.
    ///
    /// # Errors
    /// If anything fails, or this is not root.
    pub fn run(&self) -> anyhow::Result<()> {
        if !network::is_inside() {
            network::require_root()?;
            setup::need(NEEDS)?;
            setup::need(crate::lab::NEEDS)?;
            shell::build(true)?;
            return network::run_inside(&[
                "bench".into(),
                "boot".into(),
                "--runs".into(),
                self.runs.to_string().into(),
            ]);
        }
        let work = tempfile::Builder::new().prefix("coe-bench-").tempdir()?;
        let set = work.path().join("set");
        fs::create_dir_all(&set)?;
        for (_, name, megabytes) in LINKS {
            fs::write(set.join(name), sample::noise(megabytes as u64, megabytes * 1_000_000))?;
        }
        let lab = Lab::start(&work.path().join("lab"), &set)?;
        lab.serve(Setup { dhcp: Dhcp::Foreign, uefi: "ipxe" })?;
        println!("| link | client | MB/s | of the link | of what its frames can carry |\n|---|---|---|---|---|");
        for (mbit, name, megabytes) in LINKS {
            shape(mbit)?;
            self.measure(mbit, name, megabytes, work.path())?;
        }
        Ok(())
    }

    fn measure(&self, mbit: u64, name: &str, megabytes: usize, work: &Path) -> anyhow::Result<()> {
        let address = network::ADDRESS.to_string();
        let (url, got) = (format!("http://{address}:7480/boot/{name}"), work.join("got"));
        let got = got.to_str().context("a path in UTF-8")?;
        let http = ["curl", "--silent", "--fail", "--output", got, &url];
        let (block, window) = ("blksize 1468", "windowsize 16");
        let tftp = ["atftp", "--option", block, "--option", window, "-g", "-r", name, "-l", got, &address];
        let clients: [(&str, &[&str], f64); 2] =
            [("HTTP", &http, TCP_PAYLOAD), ("TFTP, window 16", &tftp, TFTP_PAYLOAD)];
        for (client, command, payload) in clients {
            let mut seconds = Vec::new();
            for _ in 0..self.runs {
                let _ = fs::remove_file(got);
                seconds.push(load(command)?);
                let is_whole = fs::metadata(got)?.len() == megabytes as u64 * 1_000_000;
                anyhow::ensure!(is_whole, "{client} did not load the whole file");
            }
            let rate = megabytes as f64 / median(seconds);
            let link = mbit as f64 / 8.0;
            println!("| {mbit} Mbit/s | {client} | {rate:.1} | {:.3} | {:.3} |", rate / link, rate / link / payload);
        }
        Ok(())
    }
}
