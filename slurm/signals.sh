# From here on, SLURM's signals reach the controller. If one arrives before the controller listens, or the controller is
# killed, the job is requeued so that the chain continues, up to {{ mends }} times after a kill.
warned='' ended='' child='' began=$(date +%s)
kills=$PWD/slurm/{{ job }}.kills code_file=$PWD/slurm/{{ job }}.$SLURM_JOB_ID.code
rm -f "$code_file"
trap 'echo $? >"$code_file"' EXIT  # its absence tells the job `watch` that this shell was killed
trap 'warned=USR1; kill -USR1 $child 2>/dev/null' USR1
trap 'ended=TERM; echo 75 >"$code_file"; kill -TERM $child 2>/dev/null' TERM
supervise() {
  [ -z "$warned$ended" ] || return 75
  "$@" &
  child=$!
  [ -z "$warned$ended" ] || kill -"${ended:-$warned}" $child  # it came while the program was being started
  wait $child
  while kill -0 $child 2>/dev/null; do wait $child; done
  wait $child
}
back_into_the_queue() {  # tries for some minutes if SLURM does not answer
  for pause in 5 10 20 40 60 60 60 60; do
    if state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T); then
      [ "$state" = RUNNING ] || return
{% if again %}
      echo "stacking: $1; submitting the rest of the chain again" >&2
      {{ again }} && exit 0
{% else %}
      echo "stacking: $1; requeueing job $SLURM_JOB_ID" >&2
      scontrol requeue "$SLURM_JOB_ID" && return
{% endif %}
    fi
    sleep $pause
  done
}
