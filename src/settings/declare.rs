//! The two macros with which settings are declared.

/// Declares a section of settings: a plain struct whose doc comments are the reference page.
///
/// ```text
/// settings! {
///     /// What the section is about.
///     pub struct Config {
///         /// What it does, and what larger or smaller costs.
///         pub max_recv_msg_size: ByteSize = ByteSize::mib(100),
///         /// `None` syncs every batch.
///         pub fsync_interval: Option<Duration> = Some(Duration::from_millis(100)),
///         /// After `=>` stands the range of allowed values.
///         pub concurrency: usize = 4 => 1..=1024,
///         /// Without a default it is an inner section.
///         pub client: client::Config,
///     }
///     check |config| if config.a < config.b { Ok(()) } else { Err("`a` must be below `b`".to_owned()) };
/// }
/// ```
///
/// The optional `check` (a function or closure over `&Config`) compares settings with each other.
macro_rules! settings {
    (
        $(#[doc = $about:expr])*
        $visibility:vis struct $name:ident {
            $(
                $(#[doc = $docs:expr])*
                pub $field:ident : $type:ty $(= $default:expr $(=> $range:expr)?)?
            ),* $(,)?
        }
        $(check $check:expr;)?
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq)]
        $visibility struct $name {
            $($(#[doc = $docs])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                $name { $($field: $crate::settings::settings!(@default $($default)?),)* }
            }
        }

        impl $crate::settings::Section for $name {
            fn about(&self) -> &'static str {
                concat!($($about, "\n"),*)
            }

            fn fields(&mut self) -> Vec<$crate::settings::Field<'_>> {
                vec![$($crate::settings::Field {
                    name: stringify!($field),
                    docs: concat!($($docs, "\n"),*),
                    item: $crate::settings::settings!(@item &mut self.$field, $($default $(=> $range)?)?),
                }),*]
            }

            fn check(&self) -> Result<(), String> {
                $(
                    let check: fn(&$name) -> Result<(), String> = $check;
                    check(self)?;
                )?
                Ok(())
            }
        }
    };
    (@default) => { Default::default() };
    (@default $default:expr) => { $default };
    (@item $value:expr,) => { $crate::settings::Item::Section($value) };
    (@item $value:expr, $default:expr) => {
        $crate::settings::Item::Leaf(Box::new($crate::settings::Ranged::new($value, ..)))
    };
    (@item $value:expr, $default:expr => $range:expr) => {
        $crate::settings::Item::Leaf(Box::new($crate::settings::Ranged::new($value, $range)))
    };
}

/// Declares an enum whose variants are the allowed values of a setting.
///
/// ```text
/// setting_enum! {
///     /// How a log line looks.
///     pub enum Format {
///         /// For people.
///         Text = "text",
///         /// One JSON object a line.
///         Json = "json",
///     }
/// }
/// ```
macro_rules! setting_enum {
    (
        $(#[doc = $about:expr])*
        $visibility:vis enum $name:ident {
            $($(#[doc = $docs:expr])* $variant:ident = $text:literal),* $(,)?
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $visibility enum $name {
            $($(#[doc = $docs])* $variant),*
        }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &[$name] = &[$($name::$variant),*];

            /// The value as it is written in settings.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::settings::SettingValue for $name {
            type Bound = ();

            fn type_name() -> String {
                "choice".to_owned()
            }

            fn expected() -> String {
                let names: Vec<String> = $name::ALL.iter().map(|value| format!("`{value}`")).collect();
                format!("one of {}", names.join(", "))
            }

            fn parse(text: &str) -> Result<Self, String> {
                $name::ALL.iter().find(|value| value.as_str() == text).copied().ok_or_else(|| {
                    let known = $name::ALL.iter().map(|value| value.as_str());
                    $crate::settings::nearest(text, known).map_or_else(String::new, |near| {
                        format!("`{text}` is unknown, did you mean `{near}`?")
                    })
                })
            }

            fn show(&self) -> $crate::settings::Shown {
                $crate::settings::Shown::Text(self.as_str().to_owned())
            }

            fn choices() -> Vec<(&'static str, &'static str)> {
                vec![$(($text, concat!($($docs, "\n"),*))),*]
            }
        }
    };
}

pub(crate) use {setting_enum, settings};
