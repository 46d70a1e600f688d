"""Training for the search that serves: what was said against what the beam search would rather write.

CTC makes a text probable by its sound alone, and spends much of a network on letters that language knows anyway. Here
`speech.beam` lists the best texts of each utterance, and the loss is how improbable the true one is among them. Where
all agree there is no gradient; what language cannot mend has all of it. This is maximum mutual information over N-best
lists, boosted by a margin for each wrong word.

Sources: Chow, Maximum mutual information estimation of HMM parameters for continuous speech recognition using the
N-best algorithm, ICASSP 1990; Povey et al., Boosted MMI for model and feature-space discriminative training, ICASSP
2008; Veselý et al., Sequence-discriminative training of deep neural networks, Interspeech 2013.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import jiwer
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from speech.alphabet import Alphabet
from speech.beam import OPTIONS, RAREST, BeamDecoder, read_options
from speech.ctc import LogProbs
from speech.language_model import MARKS, UNKNOWN, LanguageModel, read_language_model
from speech.search import BeamOptions

WIDTH = 64  # prefixes of the search, a quarter of what serves


def language_score(text: str, model: LanguageModel, options: BeamOptions) -> float:
    """What the search adds for a text's words to what it hears, in nats."""
    score, state = 0.0, model.start
    for word in text.translate(MARKS).split():
        nats, state = model.word(state, word)
        score += options.word_bonus + options.lm_weight * nats - options.unknown_penalty * (state[-1] == UNKNOWN)
    return score


def errors(said: str, written: str) -> int:
    """Words that are wrong, missing or too many."""
    counted = jiwer.process_words(said, written)
    return counted.substitutions + counted.deletions + counted.insertions


def weighed(log_probs: Tensor, options: BeamOptions) -> Tensor:
    """Log-probabilities as the search takes them: float32 (…, n_labels) of the same, blank last, scaled, less the
    priors; label 0 is a second blank."""
    blank = torch.logaddexp(log_probs[..., -1], log_probs[..., 0]).unsqueeze(-1)
    scaled = torch.cat([log_probs[..., 1:-1], blank], -1) * options.acoustic_scale
    if options.priors:
        priors = np.array(options.priors)
        priors[-1] += priors[0]
        scaled = scaled - options.prior_scale * torch.from_numpy(priors[1:]).to(scaled).clamp(min=RAREST).log()
    return F.pad(scaled.log_softmax(-1), (1, 0), value=-1e4)


@dataclass(frozen=True, slots=True, eq=False)
class NBestMMI:
    """The loss, for one language model and one set of weights of the search.

    The language model should not have read the texts that are trained on, or it is surer of them than of any others.
    """

    model: LanguageModel
    decoder: BeamDecoder  # with that language model
    rivals: int = 4  # texts beside the one that was said
    scale: float = 0.5  # of all scores: the smaller, the more do rivals count that are far behind
    margin: float = 1.0  # nats that a rival is given for each wrong word

    @classmethod
    def of(cls, folder: Path, language_model: Path) -> "NBestMMI":
        """With the weights of the search of a model's folder, and a language model. Raises as those who read them."""
        model, options = read_language_model(language_model), replace(read_options(folder / OPTIONS), width=WIDTH)
        return cls(model, BeamDecoder(Alphabet(), model, options))

    def losses(self, log_probs: Tensor, n_steps: Tensor, texts: Sequence[str]) -> Tensor:
        """Negative log-probability of each text among its rivals, float32 (B,), of log_probs float32 (steps, B,
        n_labels) and n_steps int64 (B,); 0 where there is no text, or more of it than the steps can hold."""
        alphabet, options = self.decoder.alphabet, self.decoder.options
        heard = log_probs.detach().transpose(0, 1).cpu().numpy()
        spoken: list[int] = []  # the utterances that have a loss
        counts: list[int] = []  # candidates of each, the true text first
        labels: list[list[int]] = []
        given: list[float] = []  # what a candidate's score has beside its sound
        for i, (text, n) in enumerate(zip(texts, n_steps.tolist(), strict=True)):
            said = alphabet.encode(text)
            if not said or len(said) + sum(a == b for a, b in pairwise(said)) > n:
                continue
            found = (transcript.text for transcript, _ in self.decoder.hypotheses(LogProbs(heard[i, :n])))
            candidates = [text, *[rival for rival in found if rival and rival != text][: self.rivals]]
            spoken.append(i)
            counts.append(len(candidates))
            labels += map(alphabet.encode, candidates)
            given += [
                self.scale * language_score(candidate, self.model, options) + self.margin * errors(text, candidate)
                for candidate in candidates
            ]
        losses = log_probs.new_zeros(len(texts))
        if spoken:
            owners = torch.tensor(spoken).repeat_interleave(torch.tensor(counts))
            flat = torch.tensor([label for row in labels for label in row])
            sound = -F.ctc_loss(
                weighed(log_probs, options)[:, owners.to(log_probs.device)],
                flat.to(log_probs.device),
                n_steps[owners],
                torch.tensor([len(row) for row in labels]),
                blank=alphabet.blank,
                reduction="none",
            )
            scores = (self.scale * sound + torch.tensor(given).to(sound)).split(counts)
            losses[spoken] = torch.stack([own.logsumexp(0) - own[0] for own in scores]) / self.scale
        return losses
