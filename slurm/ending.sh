code=$?
trap '' USR1 TERM  # SLURM repeats them
# The program may have died of a signal that this shell had not seen yet.
case $code in 138) warned=USR1 ;; 143) ended=TERM ;; esac
if [ -n "$warned$ended" ] && { [ $code = 75 ] || [ $code -ge 128 ]; }; then
  {{ interrupted }} "$began" "SIG${ended:-$warned}" || [ -n "$ended" ] || back_into_the_queue 'warned of the time limit'
{% if again %}
  [ -n "$ended" ] || back_into_the_queue 'warned of the time limit'
{% endif %}
elif [ $code -ge 128 ]; then
  echo "$code" >>"$kills"
  if [ "$(wc -l <"$kills")" -le {{ mends }} ]; then
    back_into_the_queue "the controller was killed by signal $((code - 128))"
  fi
fi
exit $code
