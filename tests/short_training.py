"""A small method and what its runs are compared by."""

from dataclasses import replace

from lightning.pytorch.callbacks import Callback

from adaptmed import methods
from adaptmed.adaptor.model import Adaptor
from adaptmed.runs.folder import read_metrics

METHOD = replace(
    methods.changed(methods.adaptor(), {"fusion": {"width": 16, "heads": 2, "dropout": 0.1}}),
    schedule=methods.Schedule(epochs=3, batch_size=8, learning_rate=1e-3, warmup_share=0.0),
)


class StopAfter(Callback):
    """Ends the process's training like a crash would, after a given step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def weights(out):
    return Adaptor.from_pretrained(out, load_encoders=False).fusion.state_dict()


def drop_seconds(out):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(out)]
