"""The workspace as the model may see it: what is left out, what stands in front of a completion.

- What there is: `walk` finds the files, by `ignore` (git's rules and ours, line by line in
  `ignore_rules`), `names` and `secrets`; `read` makes text of one; `languages` names its language.
- What happens: `observe` or the editor tells of events, `changes` makes places to look at of them,
  `snapshot` looks and tells what has changed.
- What is shown: `open_files` chooses what stands in front of a completion.
"""
