//! How VirtualBox's VBoxManage is called.

use serde::Deserialize;

use crate::units::Span;

/// `[vbox]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vbox {
    /// The version of the format that is exported; 2.0 if absent.
    pub ovf: Option<Ovf>,
    /// What else an export shall hold, or leave out.
    pub options: Vec<ExportOption>,
    /// How long one guest may take.
    pub timeout: Option<Span>,
    /// How often to look whether a running guest has stopped.
    pub retry_wait: Option<Span>,
    /// How long to do so when only running guests are left.
    pub retry_for: Option<Span>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Ovf {
    #[serde(rename = "0.9")]
    V09,
    #[serde(rename = "1.0")]
    V10,
    #[default]
    #[serde(rename = "2.0")]
    V20,
}

impl Ovf {
    /// The flag of VBoxManage export.
    pub fn flag(self) -> &'static str {
        match self {
            Ovf::V09 => "--ovf09",
            Ovf::V10 => "--ovf10",
            Ovf::V20 => "--ovf20",
        }
    }
}

/// Some of what VBoxManage export takes as `--options`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportOption {
    /// With the images of CDs and DVDs.
    Iso,
    /// Without the hardware addresses of network adapters.
    Nomacs,
    /// The same, but for adapters behind NAT.
    Nomacsbutnat,
}

impl ExportOption {
    /// As VBoxManage takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            ExportOption::Iso => "iso",
            ExportOption::Nomacs => "nomacs",
            ExportOption::Nomacsbutnat => "nomacsbutnat",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn what_may_be_said() {
        let text = "[vbox]\novf = \"1.0\"\noptions = [\"iso\", \"nomacs\"]\ntimeout = \"6h\"\nretry_for = \"2h\"\n";
        let vbox = Config::parse(text).unwrap().vbox;
        assert_eq!((vbox.ovf, vbox.options), (Some(Ovf::V10), vec![ExportOption::Iso, ExportOption::Nomacs]));
        assert_eq!((vbox.timeout, vbox.retry_for, vbox.retry_wait), (Some(Span(21_600)), Some(Span(7200)), None));
        for wrong in ["ovf = \"3.0\"", "ovf = 2.0", "options = [\"manifest\"]", "timout = \"1h\""] {
            let error = Config::parse(&format!("[vbox]\n{wrong}\n")).unwrap_err();
            assert!(format!("{error:#}").starts_with("2:"), "{wrong}: {error:#}");
        }
    }
}
