//! Years of a large fleet: `cargo xtask sim fleet --clients N`.

use clap::Parser;
use tests::fleet_model::Model;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    model: Model,
}

fn main() -> anyhow::Result<()> {
    let model = Cli::parse().model;
    let outcome = model.run();
    print!("{}", outcome.lines(&model));
    if let Some(file) = &model.svg {
        std::fs::write(file, outcome.svg(&model))?;
        println!("drawn in {}", file.display());
    }
    Ok(())
}
