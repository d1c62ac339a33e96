//! Writes what is made from the types into a folder.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = env::args_os().nth(1).map(PathBuf::from).ok_or("usage: kubeveil-codegen FOLDER")?;
    for (name, text) in kubeveil_api::crd::files()? {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}
