# cmake -DNM=... -DOBJECT=FILE -DTABLE=NAME -P symbols.cmake: TABLE is the only symbol that FILE defines for others.
execute_process(COMMAND ${NM} --defined-only --extern-only ${OBJECT} OUTPUT_VARIABLE symbols RESULT_VARIABLE result)
string(REGEX REPLACE "\n+$" "" symbols "${symbols}")
string(REPLACE "\n" ";" symbols "${symbols}")
list(LENGTH symbols n)
if(NOT result EQUAL 0 OR NOT n EQUAL 1 OR NOT symbols MATCHES "${TABLE}")
    string(REPLACE ";" "\n" symbols "${symbols}")
    message(FATAL_ERROR "${OBJECT} defines for other files not ${TABLE} alone:\n${symbols}")
endif()
