"""How channels run through a model, and how they are removed.

A channel is followed in this order, with a file for each step:

1. `labels`: each index of each axis of a parameter gets a label; joined labels are one channel.
2. `operations`: `torch.export` traces the model; an operation is a node of the graph.
3. `rules`: the rule of an operation joins the labels of channels that must go together, and
   returns the labels of the result. Each rule file ends with a table: name in ATen, rule.
4. `walk` applies the rules from the inputs of the graph to the outputs. `flow` holds the labels
   meanwhile, and the requirements that must be met at the end.
5. `coupling` returns groups of channels, the places where they lie, and reasons to stay dense.
6. `removal` takes channels out of a copy of the model. `numbers` finds the numbers in the model's
   code that may count them, and `torch_layers` those in the layers of torch.
7. `trial` compares the outputs, and finds which groups can be removed together.
8. `shrink` does so for zero channels; `adoption` loads the smaller model into a new instance.

Words:

- label: a whole number that stands for a channel. An activation has a label for each entry; a
  stored tensor (a parameter or buffer) has labels for each axis. The label 0 means no channel. A
  minus sign means that the entry may be nonzero if the channel is pruned.
- channel: all entries and indices with joined labels; they are removed together. The smallest of
  the labels is the representative.
- row: all labels at an index of an axis. The labels of a joined row are one channel.
- producer: a weight that makes channels along an output axis. Other weights read the channels.
- group: alike channels; each can be removed in the same way.
- place: an axis of a stored tensor along which the channels of a group lie.
- dense: never removed, for a reason that users see.
- counted axis: an axis whose length the model's code may contain, as the number of heads.
"""
