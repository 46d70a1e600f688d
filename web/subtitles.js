// Subtitles of words with times, cut as the service cuts them: speech/segments.py and speech/subtitles.py.
const GAP = 0.8, LONGEST = 6; // seconds: the silence that ends a segment, and the length of one
const LINE = 42, LINES = 2; // characters of a line, lines of a cue
const SHOWN = 1000; // milliseconds that a cue is shown at least, if the next one leaves it the time

const ms = (seconds) => Math.round(1000 * seconds);
const clock = (time, point) => new Date(time).toISOString().slice(11, 23).replace(".", point);

// Runs of words that fit; one that is followed by another ends at the longest pause of its second half.
function cut(words, fits) {
  const pause = (i) => ms(words[i].start - words[i - 1].end);
  const runs = [];
  for (let begin = 0, end; begin < words.length; begin = end) {
    end = begin + 1;
    while (end < words.length && fits(words.slice(begin, end + 1))) end++;
    if (end < words.length) {
      const last = end;
      end = Math.floor((begin + last) / 2) + 1;
      for (let i = end; i <= last; i++) if (pause(i) >= pause(end)) end = i;
    }
    runs.push(words.slice(begin, end));
  }
  return runs;
}

function breaths(words) {
  const runs = [];
  for (let begin = 0, end = 1; begin < words.length; begin = end++) {
    while (end < words.length && words[end].start - words[end - 1].end <= GAP) end++;
    runs.push(words.slice(begin, end));
  }
  return runs;
}

function wrap(words, width) {
  const lines = [];
  for (const { word } of words) {
    if (lines.length && lines.at(-1).length + 1 + word.length <= width) lines.push(`${lines.pop()} ${word}`);
    else lines.push(word);
  }
  return lines;
}

// Lines of similar length: the narrowest wrapping that needs no more of them.
function balanced(words) {
  const widest = wrap(words, LINE);
  for (let width = Math.max(...words.map(({ word }) => word.length)); width < LINE; width++) {
    const lines = wrap(words, width);
    if (lines.length <= widest.length) return lines;
  }
  return widest;
}

function cues(words) {
  const parts = breaths(words)
    .flatMap((breath) => cut(breath, (run) => run.at(-1).end - run[0].start <= LONGEST))
    .flatMap((segment) => cut(segment, (run) => wrap(run, LINE).length <= LINES));
  const begins = parts.map((part) => ms(part[0].start));
  return parts.map((part, i) => {
    const end = Math.min(Math.max(ms(part.at(-1).end), begins[i] + SHOWN), begins[i + 1] ?? Infinity);
    return { begin: begins[i], end: Math.max(end, begins[i] + 1), text: `${balanced(part).join("\n")}\n` };
  });
}

const timed = ({ begin, end }, point) => `${clock(begin, point)} --> ${clock(end, point)}\n`;
const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

export const srt = (words) =>
  cues(words).map((cue, i) => `${i + 1}\n${timed(cue, ",")}${cue.text.replaceAll("-->", "->")}`).join("\n");

export const vtt = (words) =>
  ["WEBVTT\n", ...cues(words).map((cue) => timed(cue, ".") + escaped(cue.text))].join("\n");
